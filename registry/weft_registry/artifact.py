"""An artifact on disk: one flat directory that stock PEFT loads, plus `adapter_manifest.json`.

Writes and reads the manifest of such a directory, and says which file names may be in one. Of a kind it knows only
whether PEFT has it too; nothing of stores or catalogs. The artifact of a kind that PEFT lacks has no
`adapter_config.json`: a file of that name would promise that PEFT can load it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from weft_registry import card, headers
from weft_registry import digest as digests
from weft_registry import manifest as manifests
from weft_registry.base import BaseFingerprint
from weft_registry.errors import InvalidInputError, NotFoundError, Violation
from weft_registry.kinds import KIND_SCHEMAS
from weft_registry.kinds.schema import PeftSchema
from weft_registry.manifest import FileEntry, Manifest, Metric, TensorEntry

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
CARD = "README.md"
MANIFEST = manifests.FILE_NAME
REQUIRED = (CONFIG, WEIGHTS)
"""What a PEFT directory has."""
MAX_FILES = 64
MAX_CONFIG_BYTES = 1 << 20
MAX_OTHER_BYTES = 64 << 20
"""Of a file that is neither weights, configuration nor card. A large tokenizer has half of it."""

# What may lie beside the required files: inert text, and pictures that can hold no script, as SVG can. A second
# file of weights would escape validation; pickles (.bin, .pt, .pkl, .ckpt) and Python run code when they are loaded.
MEDIA_TYPES: Mapping[str, str] = {
    ".json": "application/json",
    ".md": "text/markdown",
    ".png": "image/png",
    ".txt": "text/plain",
    ".yaml": "application/yaml",
}
WEIGHTS_MEDIA_TYPE = "application/vnd.weft.safetensors"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}")
_EXECUTABLE = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py", ".pyc", ".npy", ".npz", ".so", ".h5")


def media_type(path: str) -> str:
    """The media type of an artifact's file. Raises `InvalidInputError` for a name or type that may not be in one."""
    if path == WEIGHTS:
        return WEIGHTS_MEDIA_TYPE
    label = repr(path[:120])
    if "/" in path or "\\" in path or path in (".", ".."):
        raise InvalidInputError(f"file {label}: an artifact is one flat directory: no '/', no '\\', no '..'")
    if not _NAME.fullmatch(path) or ".." in path:
        raise InvalidInputError(
            f"file {label}: a file name has ASCII letters, digits, '.', '_' and '-', at most 127, starts with a letter "
            "or digit, and has no '..'"
        )
    if path.casefold() == MANIFEST:
        raise InvalidInputError(f"file {label}: the manifest cannot list itself")
    suffix = Path(path).suffix.lower()
    if suffix in _EXECUTABLE:
        raise InvalidInputError(f"file {label}: {suffix} files can run code when they are loaded; use safetensors")
    if suffix not in MEDIA_TYPES:
        allowed = ", ".join(sorted(MEDIA_TYPES))
        raise InvalidInputError(f"file {label}: not a type an artifact may hold: {WEIGHTS} and {allowed}")
    return MEDIA_TYPES[suffix]


def has_config(kind: str) -> bool:
    """Whether an artifact of `kind` holds PEFT's configuration; of a kind that nobody knows here it may."""
    return kind not in KIND_SCHEMAS or isinstance(KIND_SCHEMAS[kind], PeftSchema)


def check_paths(paths: Iterable[str], kind: str | None = None) -> list[Violation]:
    """What is wrong with the file names of an artifact of `kind`, or of a plain PEFT directory (None): bad names or
    types, collisions, missing files, too many."""
    violations: list[Violation] = []
    seen: dict[str, str] = {}
    names = list(paths)
    if len(names) > MAX_FILES:
        violations.append(Violation("files", f"{len(names)} files; at most {MAX_FILES}"))
    for index, path in enumerate(names[:MAX_FILES]):
        try:
            media_type(path)
        except InvalidInputError as error:
            violations.append(Violation(f"files[{index}].path", error.message))
            continue
        # Names are ASCII by now, so Unicode normalization cannot make two of them equal; letter case can.
        other = seen.setdefault(path.casefold(), path)
        if other != path or names.index(path) != index:
            violations.append(Violation(f"files[{index}].path", f"{path!r} collides with {other!r}"))
    required = REQUIRED if kind is None or has_config(kind) else (WEIGHTS,)
    violations += [Violation("files", f"{name} is missing") for name in required if name not in names]
    if CONFIG not in required and CONFIG in names:
        violations.append(Violation(CONFIG, f"PEFT has no adapters of the kind {kind}: remove it"))
    return violations


def check_sizes(files: Iterable[FileEntry]) -> list[Violation]:
    """What is larger than a file of its name may be. The weights are the store's to bound."""
    most = {CONFIG: MAX_CONFIG_BYTES, CARD: card.MAX_BYTES}
    return [
        Violation(f"files[{file.path}].size", f"{file.size} bytes; at most {most.get(file.path, MAX_OTHER_BYTES)}")
        for file in files
        if file.path != WEIGHTS and file.size > most.get(file.path, MAX_OTHER_BYTES)
    ]


def files_of(directory: Path, kind: str | None = None) -> list[Path]:
    """The files of a directory with an artifact of `kind`, or of a plain PEFT directory (None), by name, the manifest
    excepted.

    Raises `NotFoundError` if there is no such directory, `InvalidInputError` (with a violation each) for whatever may
    not be there: links, directories, unsafe names, pickles, Python.
    """
    if not directory.is_dir():
        raise NotFoundError(f"no artifact directory at {directory}", reason="DIRECTORY_NOT_FOUND")
    found = sorted((entry for entry in os.scandir(directory) if entry.name != MANIFEST), key=lambda e: e.name)
    violations = [
        Violation(_printable(entry.name), "neither links nor directories may be in an artifact: only regular files")
        for entry in found
        if not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode)
    ]
    violations += check_paths((entry.name for entry in found), kind)
    if violations:
        raise refused(f"{directory} is not an artifact", violations)
    return [directory / entry.name for entry in found]


def describe(
    directory: Path,
    *,
    kind: str,
    adapter_block: Mapping[str, Any],
    base: BaseFingerprint,
    name: str,
    license: str = "",
    tokenizer: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    metrics: Sequence[Metric] = (),
    created: str | None = None,
) -> Manifest:
    """The manifest of the files that are in `directory` now: every file and every tensor hashed.

    Whether the tensors are those that `adapter_block` asks for is decided by `weft_registry.validation`. `created` is
    UTC, "2026-01-31T12:00:00Z"; None means now. Raises what `files_of` and `headers.read_header` raise.
    """
    files = [
        FileEntry(path.name, path.stat().st_size, digests.of_file(path), media_type(path.name))
        for path in files_of(directory, kind)
    ]
    weights = directory / WEIGHTS
    with weights.open("rb") as file:
        header = headers.read_header(file, weights.stat().st_size, WEIGHTS)
        tensors = tensor_table(file, header)
    return Manifest(
        kind=kind,
        name=name,
        created=created or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        license=license,
        base=base,
        adapter=dict(adapter_block),
        tensors=tensors,
        files=files,
        tokenizer=dict(tokenizer or {}),
        provenance=dict(provenance or {}),
        metrics=list(metrics),
    )


def tensor_table(file: BinaryIO, header: headers.Header) -> list[TensorEntry]:
    """What a manifest says of the tensors in a file of weights: in order of their names, hashed."""
    scanned = zip(header.entries, headers.scan_tensors(file, header), strict=True)
    table = [TensorEntry(entry.name, entry.dtype, entry.shape, scan.sha256) for entry, scan in scanned]
    return sorted(table, key=lambda tensor: tensor.name)


def write_manifest(directory: Path, manifest: Manifest | bytes) -> Path:
    """Writes `adapter_manifest.json` in one step (a reader sees the old one or the new one) and returns its path.

    Takes the canonical bytes too, for who has them already.
    """
    path = directory / MANIFEST
    temporary = directory / f".{MANIFEST}.{os.getpid()}"
    temporary.write_bytes(manifest if isinstance(manifest, bytes) else manifest.canonical_bytes())
    temporary.replace(path)
    return path


def read(directory: Path) -> Manifest:
    """The manifest of an artifact directory.

    Raises `NotFoundError` if there is none, and what `Manifest.parse` raises.
    """
    return Manifest.parse(read_bytes(directory))


def read_bytes(directory: Path) -> bytes:
    """The bytes of an artifact directory's manifest, one more than it may have at most.

    Raises `NotFoundError` if there is none, `InvalidInputError` for a link, or for a pipe, which would never end.
    """
    try:
        descriptor = os.open(directory / MANIFEST, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(
            f"{directory} has no {MANIFEST}, so it is no artifact; of a plain PEFT directory `weft push {directory} "
            "NAMESPACE/NAME --base BASE` makes one",
            reason="MANIFEST_NOT_FOUND",
        ) from None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise InvalidInputError(f"{directory / MANIFEST}: a link, not a regular file") from None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidInputError(f"{directory / MANIFEST}: not a regular file")
        return file.read(manifests.MAX_BYTES + 1)


def _printable(name: str) -> str:
    """A directory can hold names that are not text."""
    return name[:120].encode("utf-8", "backslashreplace").decode()


def refused(what: str, violations: Sequence[Violation]) -> InvalidInputError:
    """One error for many violations; its message names the first few."""
    shown = "; ".join(f"{v.field}: {v.description}" for v in violations[:5])
    more = f"; and {len(violations) - 5} more" if len(violations) > 5 else ""
    return InvalidInputError(f"{what}: {shown}{more}", reason="ARTIFACT_REFUSED", violations=violations)
