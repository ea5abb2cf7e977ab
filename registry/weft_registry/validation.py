"""Decides whether an artifact is what its manifest says, completely, before anything of it is stored or served.

Knows manifests, safetensors headers and the kinds' schemas; nothing of catalogs, networks or torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

from weft_registry import artifact, card, headers, words
from weft_registry import digest as digests
from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError, PreconditionError, Violation, WeftError
from weft_registry.headers import Header, HeaderEntry
from weft_registry.kinds import kind_schema
from weft_registry.manifest import FileEntry, Manifest
from weft_registry.peft_format import config_differences, parse_config
from weft_registry.uncollected import uncollected

MAX_VIOLATIONS = 100
_CHANGED = "changed since the manifest was made: its digest is another"

OpenFile = Callable[[FileEntry], BinaryIO]
"""Opens one file of the artifact, whose digest has been checked, for reading and seeking."""
KnowsSound = Callable[[str, Sequence[str]], bool]
"""Whether weights with this digest are known to have tensors with these, in file order, all of them numbers."""
CheckContent = Callable[[Manifest, Header, BinaryIO], list[Violation]]
"""What is wrong with the bytes of the weights."""


def _knows_nothing(_digest: str, _tensors: Sequence[str]) -> bool:
    return False


def validate(manifest_bytes: bytes, open_file: OpenFile, base: BaseSpec | None) -> Manifest:
    """Checks an artifact against its manifest, and against `base` where that is known. Returns the parsed manifest.

    Every violation found is in the error's `violations` (at most 100). The digest of each tensor is checked; those of
    the files are the caller's to check: a store has them by digest. Raises `InvalidInputError` for a manifest or
    file that is refused, `UnsupportedError` for an unknown kind, `PreconditionError` where the manifest contradicts the
    known base.
    """
    manifest = check_manifest(manifest_bytes)
    check_files(manifest, open_file, base)
    return manifest


def check_files(
    manifest: Manifest, open_file: OpenFile, base: BaseSpec | None, knows_sound: KnowsSound = _knows_nothing
) -> None:
    """The rest of `validate`, for a manifest that `check_manifest` let pass: the files, the digest of each tensor, and
    the known base. Weights that are known to be sound are not read again."""
    _check_with(partial(_sound, knows_sound), manifest, open_file, base)


def _check_with(check_content: CheckContent, manifest: Manifest, open_file: OpenFile, base: BaseSpec | None) -> None:
    if base is not None:
        _check_base(manifest, base)
    _stop(_check_files(manifest, open_file))
    weights = _entry(manifest, artifact.WEIGHTS)
    with open_file(weights) as file:
        with uncollected():
            header = headers.read_header(file, weights.size, artifact.WEIGHTS)
            _check_tensors(manifest, header, open_file, base)
        # Last, since it reads every byte.
        _stop(check_content(manifest, header, file))


def _check_tensors(manifest: Manifest, header: Header, open_file: OpenFile, base: BaseSpec | None) -> None:
    """The file's header against the manifest's table, the kind's parameters and PEFT's configuration."""
    schema = kind_schema(manifest.kind)
    violations = _check_table(manifest, header)
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
    if artifact.has_config(manifest.kind):
        with open_file(_entry(manifest, artifact.CONFIG)) as file:
            config = parse_config(file.read(artifact.MAX_CONFIG_BYTES + 1))
        differences = config_differences(config, header.shapes, manifest.kind, params, base)
        _stop([Violation(artifact.CONFIG, difference) for difference in differences])


def check_manifest(manifest_bytes: bytes) -> Manifest:
    """Checks what a manifest says by itself, without opening a file: the cheap part of `validate`, and the first.

    Raises `InvalidInputError`, and `UnsupportedError` for an unknown kind.
    """
    with uncollected():
        manifest = Manifest.parse(manifest_bytes, canonical_only=True)
    _stop(words.check(manifest))
    kind_schema(manifest.kind).parse(manifest.adapter)
    violations = artifact.check_paths((file.path for file in manifest.files), manifest.kind)
    _stop(violations or artifact.check_sizes(manifest.files))
    return manifest


def validate_directory(directory: Path, base: BaseSpec | None) -> Manifest:
    """Validates an artifact on disk, the digests of its files included. Raises what `validate` raises."""
    manifest, open_file = _listed(directory), _opened_in(directory)
    _stop(_changed(directory, manifest.files))
    check_files(manifest, open_file, base)
    return manifest


def check_directory(directory: Path) -> Manifest:
    """Whether an artifact on disk is worth sending: `validate_directory` for an unknown base, but for what whoever
    receives it finds out in any case, the digests of the weights. Raises what `validate` raises.
    """
    manifest, open_file = _listed(directory), _opened_in(directory)
    _stop(_changed(directory, [file for file in manifest.files if file.path != artifact.WEIGHTS]))
    try:
        _check_with(_finite, manifest, open_file, None)
    except WeftError:
        # Whatever is wrong with them, that they are others comes first.
        check_unchanged(directory, manifest)
        raise
    return manifest


def check_unchanged(directory: Path, manifest: Manifest) -> None:
    """Raises `InvalidInputError` where the weights on disk are not those that the manifest was made of."""
    _stop(_changed(directory, [_entry(manifest, artifact.WEIGHTS)]))


def _listed(directory: Path) -> Manifest:
    """The manifest of a directory that has the files that it lists, and no others."""
    manifest = check_manifest(artifact.read_bytes(directory))
    found = {path.name for path in artifact.files_of(directory, manifest.kind)}
    listed = {file.path for file in manifest.files}
    violations = [Violation(name, "the manifest does not list it") for name in sorted(found - listed)]
    violations += [Violation(name, "listed in the manifest, but not there") for name in sorted(listed - found)]
    here = [file for file in manifest.files if file.path in found and file.path != artifact.WEIGHTS]
    _stop(violations and violations + _changed(directory, here))
    return manifest


def _opened_in(directory: Path) -> OpenFile:
    return lambda file: (directory / file.path).open("rb")


def _changed(directory: Path, files: Iterable[FileEntry]) -> list[Violation]:
    return [Violation(file.path, _CHANGED) for file in files if digests.of_file(directory / file.path) != file.sha256]


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
    violations: list[Violation] = []
    for file in manifest.files:
        if file.media_type != artifact.media_type(file.path):
            wanted = artifact.media_type(file.path)
            violations.append(Violation(f"files[{file.path}].media_type", f"{file.media_type!r}; expected {wanted!r}"))
        with open_file(file) as stream:
            if file.path.lower().endswith(".png") and stream.read(8) != artifact.PNG_SIGNATURE:
                violations.append(Violation(f"files[{file.path}]", "not a PNG picture: it begins otherwise"))
            if file.path == artifact.CARD and file.size <= card.MAX_BYTES:
                violations += _check_card(stream)
            size = stream.seek(0, 2)
        if size != file.size:
            violations.append(Violation(f"files[{file.path}].size", f"{file.size}, but the file has {size} bytes"))
    return violations


def _check_card(stream: BinaryIO) -> list[Violation]:
    try:
        card.check(stream.read(card.MAX_BYTES + 1), artifact.CARD)
    except InvalidInputError as error:
        return [Violation(artifact.CARD, error.message)]
    return []


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


def _sound(knows_sound: KnowsSound, manifest: Manifest, header: Header, file: BinaryIO) -> list[Violation]:
    """The bytes of the weights: each tensor's digest, and that all of them are numbers."""
    table = {tensor.name: tensor.sha256 for tensor in manifest.tensors}
    if knows_sound(_entry(manifest, artifact.WEIGHTS).sha256, [table[entry.name] for entry in header.entries]):
        return []
    violations, counts = [], []
    for entry, scan in zip(header.entries, headers.scan_tensors(file, header), strict=True):
        if scan.sha256 != table[entry.name]:
            violations.append(
                Violation(f"tensors[{entry.name}].sha256", f"{table[entry.name]}, but its bytes have {scan.sha256}")
            )
        counts.append((entry, scan.non_finite))
    return violations + _not_numbers(counts)


def _finite(_manifest: Manifest, header: Header, file: BinaryIO) -> list[Violation]:
    """The bytes of the weights: that all of them are numbers."""
    return _not_numbers((entry, headers.count_non_finite(file, entry)) for entry in header.entries)


def _not_numbers(counts: Iterable[tuple[HeaderEntry, int]]) -> list[Violation]:
    """Of each tensor how many elements are no numbers; a run that diverged ruins many, and one says the way out."""
    ruined = [(entry, count) for entry, count in counts if count]
    return [
        Violation(
            f"tensors[{entry.name}]",
            ("1 element is" if count == 1 else f"{count} elements are")
            + " NaN or infinite"
            + ("" if index else " (train again with a lower learning rate, or from an earlier checkpoint)"),
        )
        for index, (entry, count) in enumerate(ruined)
    ]


def _entry(manifest: Manifest, path: str) -> FileEntry:
    return next(file for file in manifest.files if file.path == path)


def _stop(violations: list[Violation]) -> None:
    if violations:
        raise artifact.refused("the artifact is refused", violations[:MAX_VIOLATIONS])


def _shape(shape: Iterable[int | None]) -> str:
    return "(" + ", ".join("?" if n is None else str(n) for n in shape) + ")"


def _typed(tensor: tuple[str, tuple[int, ...]] | None) -> str:
    return f"{tensor[0]} {_shape(tensor[1])}" if tensor else "no such tensor"
