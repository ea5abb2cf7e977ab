"""Decides whether an artifact is what its manifest says, completely, before anything of it is stored or served.

Knows manifests, safetensors headers and the kinds' schemas; nothing of catalogs, networks or torch.
"""

from __future__ import annotations

import gc
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from weft_registry import artifact, card, headers, words
from weft_registry import digest as digests
from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError, PreconditionError, Violation, WeftError
from weft_registry.headers import Header, TensorScan
from weft_registry.kinds import kind_schema
from weft_registry.manifest import FileEntry, Manifest
from weft_registry.peft_format import config_differences, parse_config

MAX_VIOLATIONS = 100
MAX_SOUND = 64
"""Files of weights that are remembered to be right."""
_CHANGED = "changed since the manifest was made: its digest is another"

OpenFile = Callable[[FileEntry], BinaryIO]
"""Opens one file of the artifact, whose digest has been checked, for reading and seeking."""


def validate(manifest_bytes: bytes, open_file: OpenFile, base: BaseSpec | None) -> Manifest:
    """Checks an artifact against its manifest, and against `base` where that is known. Returns the parsed manifest.

    Every violation found is in the error's `violations` (at most 100). The digest of the weights is checked; those of
    the other files are the caller's to check: a store has them by digest. Raises `InvalidInputError` for a manifest or
    file that is refused, `UnsupportedError` for an unknown kind, `PreconditionError` where the manifest contradicts the
    known base.
    """
    manifest = check_manifest(manifest_bytes)
    check_files(manifest, open_file, base)
    return manifest


def check_files(manifest: Manifest, open_file: OpenFile, base: BaseSpec | None) -> None:
    """The rest of `validate`, for a manifest that `check_manifest` let pass: the files, the digest of the weights
    included, and the known base."""
    if base is not None:
        _check_base(manifest, base)
    _stop(_check_files(manifest, open_file))
    weights = _entry(manifest, artifact.WEIGHTS)
    with open_file(weights) as file:
        with _uncollected():
            header = headers.read_header(file, weights.size, artifact.WEIGHTS)
            _check_tensors(manifest, header, open_file, base)
        # Last, since it reads and hashes every byte.
        _stop(_check_content(manifest, header, file))


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
    with _uncollected():
        manifest = Manifest.parse(manifest_bytes, canonical_only=True)
    _stop(words.check(manifest))
    kind_schema(manifest.kind).parse(manifest.adapter)
    violations = artifact.check_paths((file.path for file in manifest.files), manifest.kind)
    _stop(violations or artifact.check_sizes(manifest.files))
    return manifest


def validate_directory(directory: Path, base: BaseSpec | None) -> Manifest:
    """Validates an artifact on disk, the digests of its files included. Raises what `validate` raises."""
    manifest = check_manifest(artifact.read_bytes(directory))
    found = {path.name for path in artifact.files_of(directory, manifest.kind)}
    listed = {file.path for file in manifest.files}
    violations = [Violation(name, "the manifest does not list it") for name in sorted(found - listed)]
    violations += [Violation(name, "listed in the manifest, but not there") for name in sorted(listed - found)]
    others = [file for file in manifest.files if file.path in found and file.path != artifact.WEIGHTS]
    violations += _changed(directory, others)
    _stop(violations)
    try:
        # This hashes the weights, too: they are large.
        check_files(manifest, lambda file: (directory / file.path).open("rb"), base)
    except WeftError:
        # Whatever is wrong with them, that they are others comes first.
        _stop(_changed(directory, [_entry(manifest, artifact.WEIGHTS)]))
        raise
    return manifest


def _changed(directory: Path, files: Iterable[FileEntry]) -> list[Violation]:
    return [Violation(file.path, _CHANGED) for file in files if digests.of_file(directory / file.path) != file.sha256]


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keeps the collector of cycles away while a hundred thousand objects are made that are all in use: it would walk
    over them again and again, which takes a third of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


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


def _check_content(manifest: Manifest, header: Header, file: BinaryIO) -> list[Violation]:
    """The bytes of the weights: the whole file's digest, each tensor's, and that all of them are numbers."""
    weights = _entry(manifest, artifact.WEIGHTS)
    table = [tensor.sha256 for tensor in sorted(manifest.tensors, key=lambda t: header.places[t.name])]
    if _SOUND.knows(weights.sha256, table):
        found, scans = headers.hash_file(file), list[TensorScan]()
    else:
        found, scans = headers.scan_file(file, header)
    if found != weights.sha256:
        return [Violation(weights.path, _CHANGED)]
    violations = []
    for entry, scan, promised in zip(header.entries, scans, table, strict=False):
        if scan.sha256 != promised:
            violations.append(
                Violation(f"tensors[{entry.name}].sha256", f"{promised}, but its bytes have {scan.sha256}")
            )
        if scan.non_finite:
            violations.append(Violation(f"tensors[{entry.name}]", f"{scan.non_finite} elements are NaN or infinite"))
    if not violations:
        _SOUND.remember(weights.sha256, table)
    return violations


class _Sound:
    """Files of weights that were read here from end to end, by their digest, and found right.

    Pushing to a registry in the same process looks at the same bytes twice. Their digest is computed each time; what
    follows from it is not. Thread-safe.
    """

    def __init__(self) -> None:
        self._tables: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def knows(self, weights: str, table: Sequence[str]) -> bool:
        """Whether the file with this digest has tensors with these, all of them numbers."""
        with self._lock:
            return self._tables.get(weights) == _digest_of(table)

    def remember(self, weights: str, table: Sequence[str]) -> None:
        """That it has."""
        with self._lock:
            self._tables[weights] = _digest_of(table)
            while len(self._tables) > MAX_SOUND:
                self._tables.popitem(last=False)


_SOUND = _Sound()


def _digest_of(table: Sequence[str]) -> bytes:
    return hashlib.sha256("".join(table).encode()).digest()


def _entry(manifest: Manifest, path: str) -> FileEntry:
    return next(file for file in manifest.files if file.path == path)


def _stop(violations: list[Violation]) -> None:
    if violations:
        raise artifact.refused("the artifact is refused", violations[:MAX_VIOLATIONS])


def _shape(shape: Iterable[int | None]) -> str:
    return "(" + ", ".join("?" if n is None else str(n) for n in shape) + ")"


def _typed(tensor: tuple[str, tuple[int, ...]] | None) -> str:
    return f"{tensor[0]} {_shape(tensor[1])}" if tensor else "no such tensor"
