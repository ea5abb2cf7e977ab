"""Decides whether an artifact is what its manifest says, completely, before anything of it is stored or served.

Knows manifests, safetensors headers and the kinds' schemas; nothing of catalogs, networks or torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from weft_registry import artifact, headers
from weft_registry import digest as digests
from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError, PreconditionError, Violation
from weft_registry.headers import Header
from weft_registry.kinds import kind_schema
from weft_registry.manifest import FileEntry, Manifest
from weft_registry.peft_format import config_differences, parse_config

MAX_VIOLATIONS = 100

OpenFile = Callable[[FileEntry], BinaryIO]
"""Opens one file of the artifact, whose digest has been checked, for reading and seeking."""


def validate(manifest_bytes: bytes, open_file: OpenFile, base: BaseSpec | None) -> Manifest:
    """Checks an artifact against its manifest, and against `base` where that is known. Returns the parsed manifest.

    Every violation found is in the error's `violations` (at most 100). The digests of whole files are the caller's to
    check: a store has them by digest. Raises `InvalidInputError` for a manifest or file that is refused,
    `UnsupportedError` for an unknown kind, `PreconditionError` where the manifest contradicts the known base.
    """
    manifest = Manifest.parse(manifest_bytes)
    if manifest.canonical_bytes() != manifest_bytes:
        raise InvalidInputError("manifest: not in canonical form: sorted keys, no white space, no escapes")
    schema = kind_schema(manifest.kind)
    if base is not None:
        _check_base(manifest, base)
    violations = _check_files(manifest, open_file)
    _stop(violations)

    weights = _entry(manifest, artifact.WEIGHTS)
    with open_file(weights) as file:
        header = headers.read_header(file, weights.size, artifact.WEIGHTS)
        violations += _check_table(manifest, header)
        params = schema.parse(manifest.adapter)
        expected = schema.tensors(params, base)
        entries = {entry.name: entry for entry in header.entries}
        violations += [
            Violation(f"tensors[{name}]", f"missing: the {manifest.kind} parameters ask for {_shape(spec.shape)}")
            for name, spec in expected.items()
            if name not in entries
        ]
        for name, entry in entries.items():
            spec = expected.get(name)
            if spec is None:
                violations.append(Violation(f"tensors[{name}]", "unexpected: it belongs to no target module"))
            elif not spec.admits(entry.dtype, entry.shape):
                wanted = f"{' or '.join(sorted(spec.dtypes))} of shape {_shape(spec.shape)}"
                violations.append(
                    Violation(f"tensors[{name}]", f"{entry.dtype} of shape {_shape(entry.shape)}; expected {wanted}")
                )
        _stop(violations)
        violations += _check_content(manifest, header, file)

    if artifact.has_config(manifest.kind):
        with open_file(_entry(manifest, artifact.CONFIG)) as file:
            config = parse_config(file.read(artifact.MAX_CONFIG_BYTES + 1))
        differences = config_differences(config, header.shapes, manifest.kind, params, base)
        violations += [Violation(artifact.CONFIG, difference) for difference in differences]
    _stop(violations)
    return manifest


def validate_directory(directory: Path, base: BaseSpec | None) -> Manifest:
    """Validates an artifact on disk, the digests of its files included. Raises what `validate` raises."""
    manifest = artifact.read(directory)
    found = {path.name for path in artifact.files_of(directory, manifest.kind)}
    listed = {file.path for file in manifest.files}
    violations = artifact.check_paths((file.path for file in manifest.files), manifest.kind)
    violations += [Violation(name, "the manifest does not list it") for name in sorted(found - listed)]
    violations += [Violation(name, "listed in the manifest, but not there") for name in sorted(listed - found)]
    violations += [
        Violation(file.path, "changed since the manifest was made: its digest is another")
        for file in manifest.files
        if file.path in found and digests.of_file(directory / file.path) != file.sha256
    ]
    _stop(violations)
    return validate(manifest.canonical_bytes(), lambda file: (directory / file.path).open("rb"), base)


def _check_base(manifest: Manifest, base: BaseSpec) -> None:
    # `id` and `revision` are names, which differ between two imports of the same weights.
    for field in ("weights_sha256", "config_sha256", "arch", "quant"):
        said, known = getattr(manifest.base, field), getattr(base.fingerprint, field)
        if said != known:
            raise PreconditionError(
                f"manifest.base.{field}: {said}, but the base {base.fingerprint.id} has {known}: make the manifest "
                "again for that base",
                reason="BASE_MISMATCH",
                metadata={"field": field, "manifest": str(said), "base": str(known)},
            )


def _check_files(manifest: Manifest, open_file: OpenFile) -> list[Violation]:
    violations = artifact.check_paths((file.path for file in manifest.files), manifest.kind)
    if violations:
        return violations
    for file in manifest.files:
        if file.media_type != artifact.media_type(file.path):
            wanted = artifact.media_type(file.path)
            violations.append(Violation(f"files[{file.path}].media_type", f"{file.media_type!r}; expected {wanted!r}"))
        with open_file(file) as stream:
            if file.path.lower().endswith(".png") and stream.read(8) != artifact.PNG_SIGNATURE:
                violations.append(Violation(f"files[{file.path}]", "not a PNG picture: it begins otherwise"))
            size = stream.seek(0, 2)
        if size != file.size:
            violations.append(Violation(f"files[{file.path}].size", f"{file.size}, but the file has {size} bytes"))
    return violations


def _check_table(manifest: Manifest, header: Header) -> list[Violation]:
    """The manifest's tensor table against the file's header: the same names, dtypes and shapes, sorted by name."""
    names = [tensor.name for tensor in manifest.tensors]
    if names != sorted(set(names)):
        return [Violation("tensors", "expected each tensor once, sorted by name")]
    in_file = {entry.name: (entry.dtype, entry.shape) for entry in header.entries}
    in_manifest = {tensor.name: (tensor.dtype, tensor.shape) for tensor in manifest.tensors}
    violations = []
    for name in sorted(in_file.keys() | in_manifest.keys()):
        if in_file.get(name) != in_manifest.get(name):
            said, found = _typed(in_manifest.get(name)), _typed(in_file.get(name))
            violations.append(Violation(f"tensors[{name}]", f"the manifest says {said}, the file has {found}"))
    return violations


def _check_content(manifest: Manifest, header: Header, file: BinaryIO) -> list[Violation]:
    violations = []
    promised = {tensor.name: tensor.sha256 for tensor in manifest.tensors}
    for entry in header.entries:
        scan = headers.scan_tensor(file, entry)
        if scan.sha256 != promised[entry.name]:
            violations.append(
                Violation(f"tensors[{entry.name}].sha256", f"{promised[entry.name]}, but its bytes have {scan.sha256}")
            )
        if scan.non_finite:
            violations.append(Violation(f"tensors[{entry.name}]", f"{scan.non_finite} elements are NaN or infinite"))
    return violations


def _entry(manifest: Manifest, path: str) -> FileEntry:
    return next(file for file in manifest.files if file.path == path)


def _stop(violations: list[Violation]) -> None:
    if violations:
        raise artifact.refused("the artifact is refused", violations[:MAX_VIOLATIONS])


def _shape(shape: Iterable[int | None]) -> str:
    return "(" + ", ".join("?" if n is None else str(n) for n in shape) + ")"


def _typed(tensor: tuple[str, tuple[int, ...]] | None) -> str:
    return f"{tensor[0]} {_shape(tensor[1])}" if tensor else "no such tensor"
