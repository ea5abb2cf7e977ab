"""Versions in OCI image layouts: directories that stock OCI clients (skopeo, ORAS) read, and copy to their registries.

A layout may hold several versions, each under a tag; files that they share are there once. Everything in it is checked
when it is read: whoever wrote it may have been anybody.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft_registry import artifact
from weft_registry import digest as digests
from weft_registry.errors import CorruptionError, InvalidInputError, NotFoundError, PreconditionError, UnsupportedError
from weft_registry.exchange import modelpack
from weft_registry.exchange.adoption import Origin

MARKER = "oci-layout"
INDEX = "index.json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
REF_NAME = "org.opencontainers.image.ref.name"
MAX_DOCUMENT_BYTES = 4 << 20
"""What OCI registries take as a manifest; larger ones are not read here either."""
_MARKER_BYTES = b'{"imageLayoutVersion":"1.0.0"}'
# What the distribution specification admits as a tag. All of ours are such.
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_GZIP_OR_TAR = re.compile(r"[.+](tar|gzip|zstd)\b")


@dataclass(frozen=True)
class Entry:
    """One manifest in a layout."""

    tag: str
    """Empty where it has none."""
    digest: str
    size: int


def check_writable(layout: Path) -> None:
    """Raises `PreconditionError` for a place that holds something else than a layout."""
    if layout.exists() and (not layout.is_dir() or (any(layout.iterdir()) and not (layout / MARKER).is_file())):
        raise PreconditionError(
            f"{layout} is there already, and is no OCI image layout: export to another directory",
            reason="DESTINATION_EXISTS",
        )


def write_layout(source: Path, layout: Path, tag: str) -> str:
    """Adds the artifact in the directory `source` to `layout` under a tag, and makes the layout if need be.

    The files of `source` become the layout's: they are moved where that can be done, and copied elsewhere. A tag that
    the layout has already names this version then. The index is written last and in one step: a broken-off export
    leaves the layout as it was. Answers the OCI manifest's digest. Raises `PreconditionError` for a `layout` that holds
    something else, `CorruptionError` for a file that does not have its digest.
    """
    if not _TAG.fullmatch(tag):
        raise InvalidInputError(f"tag {tag[:140]!r}: letters, digits, '.', '_' and '-', at most 128")
    check_writable(layout)
    manifest_bytes = (source / artifact.MANIFEST).read_bytes()
    manifest = artifact.read(source)
    documents = modelpack.packed(manifest, manifest_bytes)
    (layout / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
    for file in manifest.files:
        _keep_file(source / file.path, _blob(layout, file.sha256), file.sha256)
    for data in (manifest_bytes, documents.config, documents.manifest):
        _keep(data, _blob(layout, digests.of_bytes(data)))
    _keep(_MARKER_BYTES, layout / MARKER)
    digest = digests.of_bytes(documents.manifest)
    with _held(layout):
        _write_index(layout, tag, digest, len(documents.manifest))
    return digest


def entries(layout: Path) -> list[Entry]:
    """The manifests that a layout's index lists. Raises `NotFoundError` where there is no layout, `InvalidInputError`
    for one that is malformed."""
    if not (layout / MARKER).is_file() or not (layout / INDEX).is_file():
        raise NotFoundError(f"{layout} is no OCI image layout: it has no {MARKER} and {INDEX}", reason="NO_LAYOUT")
    if _document(layout / MARKER, MARKER).get("imageLayoutVersion") != "1.0.0":
        raise UnsupportedError(f"{layout}: only image layouts of version 1.0.0 are read")
    listed = _document(layout / INDEX, INDEX).get("manifests")
    if not isinstance(listed, list):
        raise InvalidInputError(f"{INDEX}: it lists no manifests")
    found = []
    for index, descriptor in enumerate(listed):
        what = f"{INDEX}: manifests[{index}]"
        digest, size = _descriptor(descriptor, what)
        if descriptor.get("mediaType") == modelpack.MANIFEST_TYPE:
            found.append(Entry(_annotations(descriptor, what).get(REF_NAME, ""), digest, size))
    return found


def read_layout(layout: Path, tag: str, destination: Path, max_bytes: int) -> Path:
    """Copies the files of one manifest in a layout to `destination`, which it makes, each checked by its digest.

    An empty `tag` means the only manifest. Raises `NotFoundError` for a tag that is not there (it names those that
    are), `InvalidInputError` for what cannot be an artifact's file, `UnsupportedError` for packed layers,
    `CorruptionError` for bytes without their digest. Nothing larger than `max_bytes` together is copied.
    """
    entry = _choose(layout, tag)
    raw = _read(_blob(layout, entry.digest), entry.digest, entry.size)
    document = _parse(raw, f"manifest {entry.digest}")
    layers = document.get("layers")
    if not isinstance(layers, list) or len(layers) > artifact.MAX_FILES + 1:
        raise InvalidInputError(f"manifest {entry.digest}: from 1 to {artifact.MAX_FILES + 1} layers are expected")
    files: dict[str, tuple[str, int]] = {}
    for index, layer in enumerate(layers):
        what = f"manifest {entry.digest}: layers[{index}]"
        digest, size = _descriptor(layer, what)
        path = _file_name(layer, what)
        if path in files:
            raise InvalidInputError(f"{what}: the file {path!r} is there twice")
        files[path] = digest, size
    total = sum(size for _, size in files.values())
    if total > max_bytes:
        raise InvalidInputError(f"manifest {entry.digest}: its files have {total} bytes; at most {max_bytes} are taken")
    destination.mkdir(parents=True)
    for path, (digest, size) in files.items():
        source = _blob(layout, digest)
        if not source.is_file() or source.stat().st_size != size:
            raise CorruptionError(f"{layout}: the blob {digest} of {path} is not there with its {size} bytes")
        shutil.copyfile(source, destination / path)
        if digests.of_file(destination / path) != digest:
            raise CorruptionError(f"{layout}: the bytes of {path} do not have the digest {digest}")
    return destination


def origin_of(layout: Path, tag: str) -> Origin:
    """Where a manifest in a layout comes from, for files without a manifest of Weft's. Raises as `read_layout`."""
    entry = _choose(layout, tag)
    document = _parse(_read(_blob(layout, entry.digest), entry.digest, entry.size), f"manifest {entry.digest}")
    created = _annotations(document, f"manifest {entry.digest}").get("org.opencontainers.image.created", "")
    source = f"oci:{entry.tag}" if entry.tag else "oci"
    return Origin(source, {"source": "oci", "manifest": entry.digest}, created if _TIME.fullmatch(created) else None)


def _choose(layout: Path, tag: str) -> Entry:
    found = entries(layout)
    matching = [entry for entry in found if entry.tag == tag] if tag else found
    if len({entry.digest for entry in matching}) == 1:
        return matching[0]
    known = ", ".join(sorted(entry.tag or entry.digest for entry in found)) or "nothing"
    if not matching:
        raise NotFoundError(f"{layout} has no {tag!r}; it has: {known}", reason="TAG_NOT_FOUND")
    raise InvalidInputError(f"{layout} has several manifests: name one, as oci:{layout}:TAG (it has: {known})")


def _file_name(layer: Mapping[str, Any], what: str) -> str:
    media_type = str(layer.get("mediaType"))
    if _GZIP_OR_TAR.search(media_type):
        raise UnsupportedError(
            f"{what}: {media_type[:100]}: only files as they are can be imported (media types that end in .raw): "
            "unpack it with its own tool, then `weft push`"
        )
    annotations = _annotations(layer, what)
    path = annotations.get(modelpack.FILE_PATH) or annotations.get(modelpack.TITLE) or ""
    if path != artifact.MANIFEST:
        artifact.media_type(path)
    return path


def _descriptor(descriptor: Any, what: str) -> tuple[str, int]:
    if not isinstance(descriptor, dict) or type(descriptor.get("size")) is not int or descriptor["size"] < 0:
        raise InvalidInputError(f"{what}: no descriptor with a size")
    return digests.check(str(descriptor.get("digest")), f"{what}.digest"), descriptor["size"]


def _annotations(descriptor: Mapping[str, Any], what: str) -> Mapping[str, str]:
    found = descriptor.get("annotations") or {}
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise InvalidInputError(f"{what}.annotations: expected texts by name")
    return found


def _document(path: Path, what: str) -> dict[str, Any]:
    with path.open("rb") as file:
        return _parse(file.read(MAX_DOCUMENT_BYTES + 1), what)


def _parse(data: bytes, what: str) -> dict[str, Any]:
    if len(data) > MAX_DOCUMENT_BYTES:
        raise InvalidInputError(f"{what}: more than {MAX_DOCUMENT_BYTES} bytes")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{what}: not JSON ({type(error).__name__})") from error
    if not isinstance(document, dict):
        raise InvalidInputError(f"{what}: expected an object")
    return document


def _read(path: Path, digest: str, size: int) -> bytes:
    if size > MAX_DOCUMENT_BYTES:
        raise InvalidInputError(f"manifest {digest}: {size} bytes; at most {MAX_DOCUMENT_BYTES}")
    try:
        with path.open("rb") as file:
            data = file.read(size + 1)
    except FileNotFoundError:
        raise CorruptionError(f"the manifest {digest} is in the index, and its blob is not there") from None
    if len(data) != size or digests.of_bytes(data) != digest:
        raise CorruptionError(f"the manifest {digest} does not have its digest")
    return data


def _write_index(layout: Path, tag: str, digest: str, size: int) -> None:
    """Adds one entry to the index; whatever else is in it stays, in a layout that others have written to, too."""
    index: dict[str, Any] = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": []}
    if (layout / INDEX).is_file():
        index = _document(layout / INDEX, INDEX)
        entries(layout)
    mine = {
        "mediaType": modelpack.MANIFEST_TYPE,
        "artifactType": modelpack.ARTIFACT_TYPE,
        "digest": digest,
        "size": size,
        "annotations": {REF_NAME: tag},
    }
    others = [entry for entry in index["manifests"] if (entry.get("annotations") or {}).get(REF_NAME) != tag]
    index["manifests"] = sorted(
        [*others, mine], key=lambda e: ((e.get("annotations") or {}).get(REF_NAME, ""), e["digest"])
    )
    _replace(json.dumps(index, sort_keys=True, separators=(",", ":")).encode(), layout / INDEX)


@contextmanager
def _held(layout: Path) -> Iterator[None]:
    """Holds a layout against other exports to it: each of them keeps what the others added."""
    descriptor = os.open(layout, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / "sha256" / digest.removeprefix("sha256:")


def _keep_file(source: Path, target: Path, digest: str) -> None:
    """The file as a blob; one that is there and right stays."""
    if target.is_file() and digests.of_file(target) == digest:
        return
    if digests.of_file(source) != digest:
        raise CorruptionError(f"{source.name}: its bytes do not have the digest {digest}")
    temporary = target.with_name(f".{uuid.uuid4().hex}")
    try:
        shutil.move(source, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _keep(data: bytes, target: Path) -> None:
    if not target.is_file() or target.read_bytes() != data:
        _replace(data, target)


def _replace(data: bytes, target: Path) -> None:
    temporary = target.with_name(f".{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(data)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
