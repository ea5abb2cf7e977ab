"""Binding: an artifact on disk becomes an `Adapter` in memory, completely or not at all.

Every tensor of the file must be expected by the kind at this base, and every expected tensor must be there. Nothing is
skipped: an adapter that silently does half of its work is worse than one that is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from weft_adapters.kinds import KINDS
from weft_adapters.kinds.kind import Adapter, Kind
from weft_registry.base import BaseSpec
from weft_registry.errors import CorruptionError, InvalidInputError, PreconditionError, UnsupportedError, Violation
from weft_registry.kinds import kind_schema
from weft_registry.manifest import Manifest

WEIGHTS_FILE = "adapter_model.safetensors"


def check_base(manifest: Manifest, base: BaseSpec) -> None:
    """Raises `PreconditionError`, with both fingerprints, if the adapter was made for another base."""
    have, want = manifest.base, base.fingerprint
    if have.weights_sha256 != want.weights_sha256:
        raise PreconditionError(
            f"adapter {manifest.name!r} was made for the base {have.id} with weights {have.weights_sha256}, but this "
            f"is {want.id} with weights {want.weights_sha256}: serve it over its own base, or train it on this one",
            reason="BASE_MISMATCH",
            metadata={"adapter_base": have.weights_sha256, "server_base": want.weights_sha256},
        )


def bind(
    directory: Path,
    manifest: Manifest,
    base: BaseSpec,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    digest: str = "",
) -> Adapter[Any]:
    """Reads the artifact's tensors for computing over `base`, in `dtype` on `device`.

    Raises `PreconditionError` for another base, `UnsupportedError` for a kind without an implementation,
    `InvalidInputError` naming every tensor that does not bind, `CorruptionError` for a file that cannot be read.
    """
    check_base(manifest, base)
    schema = kind_schema(manifest.kind)
    kind: Kind[Any] | None = KINDS.get(manifest.kind)
    if kind is None:
        raise UnsupportedError(
            f"adapter kind {manifest.kind!r} cannot be computed here; known: {', '.join(KINDS)}", reason="UNKNOWN_KIND"
        )
    params = schema.parse(manifest.adapter)
    expected = schema.tensors(params, base)
    try:
        with safe_open(str(directory / WEIGHTS_FILE), framework="pt", device="cpu") as file:
            found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            _check(manifest, expected, {n: (s.get_dtype(), tuple(s.get_shape())) for n, s in found.items()})
            # Copies, whatever the dtype: a view of the mapped file would keep the file, and change when it does.
            tensors = {name: file.get_tensor(name).to(device=device, dtype=dtype, copy=True) for name in found}
    except (SafetensorError, OSError) as error:
        raise CorruptionError(f"adapter {manifest.name!r}: {WEIGHTS_FILE} cannot be read: {error}") from error
    infinite = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if infinite:
        raise InvalidInputError(f"adapter {manifest.name!r}: {infinite[0]} is not finite in {dtype}")
    adapter = Adapter(digest or manifest.digest(), kind, params, tensors)
    kind.check(adapter)
    return adapter


def _check(manifest: Manifest, expected: dict[str, Any], found: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    problems = [Violation(name, "binds to nothing in this base") for name in sorted(found.keys() - expected.keys())]
    problems += [Violation(name, "expected, but not in the file") for name in sorted(expected.keys() - found.keys())]
    for name in sorted(expected.keys() & found.keys()):
        dtype, shape = found[name]
        if not expected[name].admits(dtype, shape):
            problems.append(Violation(name, f"is {dtype} {shape}, expected a float of shape {expected[name].shape}"))
    if problems:
        first = "; ".join(f"{p.field}: {p.description}" for p in problems[:3])
        raise InvalidInputError(
            f"adapter {manifest.name!r} does not bind: {len(expected) - len(problems)} of {len(expected)} tensors fit "
            f"({first}{'; ...' if len(problems) > 3 else ''})",
            reason="DOES_NOT_BIND",
            violations=problems,
        )
