"""Binding: an artifact on disk becomes an `Adapter` in memory, completely or not at all.

Every tensor of the file must be expected by the kind at this base, and every expected tensor must be there. Nothing is
skipped: an adapter that silently does half of its work is worse than one that is refused.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weft_adapters.kinds import KINDS
from weft_adapters.kinds.kind import Adapter, Kind
from weft_registry import headers
from weft_registry.base import BaseSpec
from weft_registry.errors import CorruptionError, InvalidInputError, UnsupportedError, Violation
from weft_registry.headers import Header, HeaderEntry
from weft_registry.kinds import kind_schema
from weft_registry.manifest import Manifest

WEIGHTS_FILE = "adapter_model.safetensors"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def check_base(manifest: Manifest, base: BaseSpec) -> None:
    """Raises `PreconditionError`, with both fingerprints, if the adapter was made for another base."""
    way_out = "serve it over its own base, or train it on this one"
    manifest.base.check_is(base.fingerprint, f"adapter {manifest.name!r}", "this", way_out)


def bind(
    directory: Path,
    manifest: Manifest,
    base: BaseSpec,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    digest: str = "",
    parts: Sequence[Adapter[Any]] = (),
) -> Adapter[Any]:
    """Reads the artifact's tensors for computing over `base`, in `dtype` on `device`.

    `parts` are the bound adapters that it is made over (`weft_registry.parts`), in its own order.

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
    path = directory / WEIGHTS_FILE
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            header = headers.read_header(file, size_bytes, WEIGHTS_FILE)
            # Private, and writable only because torch asks for it.
            pages = mmap.mmap(file.fileno(), size_bytes, access=mmap.ACCESS_COPY)
    except (InvalidInputError, OSError) as error:
        raise CorruptionError(f"adapter {manifest.name!r}: {WEIGHTS_FILE} cannot be read: {error}") from error
    _check(manifest, expected, {entry.name: (entry.dtype, entry.shape) for entry in header.entries})
    tensors: dict[str, Tensor] = {}
    wide = {name for name, spec in expected.items() if spec.wide}
    for entries, values in _converted(pages, header, wide, dtype, device):
        pieces = torch.split(values, [math.prod(entry.shape) for entry in entries])
        if not _is_finite(values):
            bad = next(entry for entry, part in zip(entries, pieces, strict=True) if not _is_finite(part))
            way_out = "train it again with a lower learning rate, or from an earlier checkpoint"
            if _is_finite(_stored(pages, bad, bad.end)):
                way_out = "its values are beyond that dtype, so compute in a wider one, such as float32"
            raise InvalidInputError(f"adapter {manifest.name!r}: {bad.name} is not finite in {values.dtype}: {way_out}")
        tensors |= {entry.name: part.view(entry.shape) for entry, part in zip(entries, pieces, strict=True)}
    adapter = Adapter(digest or manifest.digest(), kind, params, tensors, tuple(parts))
    kind.check(adapter)
    return adapter


def _converted(
    pages: mmap.mmap, header: Header, wide: set[str], dtype: torch.dtype, device: torch.device | str
) -> Iterator[tuple[list[HeaderEntry], Tensor]]:
    """Neighbours in the file that are stored in one dtype and kept in one, and their values one after the other.

    A few large calls instead of several for each of hundreds of tensors: they leave Python's lock to the thread that
    computes. Copies, whatever the dtype: a view of the mapped file would keep the file, and change when it does.
    """
    for (_, is_wide), group in groupby(header.entries, key=lambda entry: (entry.dtype, entry.name in wide)):
        entries = list(group)
        kept = torch.float32 if is_wide else dtype
        yield entries, _stored(pages, entries[0], entries[-1].end).to(device=device, dtype=kept, copy=True)


def _stored(pages: mmap.mmap, first: HeaderEntry, end: int) -> Tensor:
    """The file's own values from the beginning of `first` to `end`, all in its dtype."""
    stored = _DTYPES[first.dtype]
    part = torch.frombuffer(pages, dtype=torch.uint8)[first.start : end]
    if first.start % stored.itemsize:
        part = part.clone()  # A header that its writer did not pad.
    return part.view(stored)


def _is_finite(values: Tensor) -> bool:
    # One pass without a temporary: NaN is the extreme of whatever has one.
    return bool(torch.stack(values.aminmax()).isfinite().all())


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
