"""The manifest of what a branch holds: the one that was committed, the one of an earlier version, or one of our making.

A plain PEFT directory has no manifest and names its base in `base_model_name_or_path`; the base is looked for among
those that the registry knows, by id or by name. Files are read where they are stored: nothing is copied, except for
AdapterHub's, whose tensors get other names.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from weft_registry import adapterhub_format, artifact, headers, peft_format
from weft_registry import manifest as manifests
from weft_registry.api import Version
from weft_registry.base import BaseSpec, BaseStore
from weft_registry.catalog.branches import BranchFile
from weft_registry.digest import CHUNK_BYTES
from weft_registry.errors import InvalidInputError, PreconditionError
from weft_registry.kinds import kind_schema
from weft_registry.manifest import FileEntry, Manifest

OpenBlob = Callable[[str], BinaryIO]
"""Opens a blob by digest for reading and seeking."""
Store = Callable[[Path], BranchFile]
"""Stores a file as a blob."""
Earlier = Callable[[str, str], Sequence[Version]]
"""The versions whose file at a path has a digest, newest first."""


@dataclass(frozen=True)
class Ready:
    """Files that make a whole artifact."""

    manifest_bytes: bytes


@dataclass(frozen=True)
class Unfinished:
    """Files that do not."""

    missing: str
    """What is missing, for people."""


def examine(
    files: Sequence[BranchFile], name: str, bases: BaseStore, open_blob: OpenBlob, store: Store, earlier: Earlier
) -> Ready | Unfinished:
    """The manifest of these files, or what they lack.

    Whether the artifact is right is for `weft_registry.validation` to say. Raises `InvalidInputError`,
    `UnsupportedError` and `PreconditionError` for what no further file could make one.
    """
    by_path = {file.path: file for file in files}
    if artifact.MANIFEST in by_path:
        return _committed(by_path, open_blob)
    weights = by_path.get(artifact.WEIGHTS)
    config = by_path.get(artifact.CONFIG)
    if weights is not None:
        for version in earlier(artifact.WEIGHTS, weights.sha256):
            if _same_config(version, config):
                return Ready(_with_files(version, files))
    if config is None:
        return Unfinished(f"{artifact.CONFIG} is missing" + ("" if weights else f", and so is {artifact.WEIGHTS}"))
    document = _config(config, open_blob)
    if adapterhub_format.WEIGHTS in by_path and _is_adapterhub(document):
        # Those of the version that the branch began with are replaced; others were committed beside these.
        if weights is not None and not earlier(artifact.WEIGHTS, weights.sha256):
            raise InvalidInputError(
                f"{artifact.WEIGHTS} and {adapterhub_format.WEIGHTS}: an artifact has one file of weights; delete one"
            )
        return Ready(_from_adapterhub(by_path, document, name, bases, open_blob, store))
    if weights is None:
        return Unfinished(f"{artifact.WEIGHTS} is missing")
    return Ready(_from_peft(files, document, weights, name, bases, open_blob))


def find_base(bases: BaseStore, said: str, revision: str = "", key: str = "base_model_name_or_path") -> BaseSpec:
    """The base that an adapter's configuration names at `key`, by id or by the name that it has here.

    Raises `PreconditionError` for one that is not known, and for an id that several bases have.
    """
    known = {name: bases.get(name) for name in bases.names()}
    if said in known:
        return known[said]
    found = {name: spec for name, spec in known.items() if spec.fingerprint.id == said}
    named = {name: spec for name, spec in found.items() if revision and spec.fingerprint.revision == revision}
    found = named or found
    if len({spec.fingerprint.weights_sha256 for spec in found.values()}) == 1:
        return next(iter(found.values()))
    listed = ", ".join(f"{name} ({spec.fingerprint.id})" for name, spec in sorted(known.items())) or "none"
    way = (
        f"set {key} in {artifact.CONFIG} to the name of one (with PEFT: "
        "model.peft_config['default'].base_model_name_or_path = ...) and upload again, or use `weft push --base NAME`"
    )
    if found:
        raise PreconditionError(
            f"{key} {said[:100]!r}: the bases {', '.join(sorted(found))} of this registry have this "
            f"id, with different weights: {way}",
            reason="BASE_AMBIGUOUS",
            metadata={"base": said[:200], "found": ",".join(sorted(found))},
        )
    what = f"{key} {said[:100]!r} is" if said else f"{key} is empty: this is"
    raise PreconditionError(
        f"{what} no base of this registry (it has: {listed}). Add it where the registry runs, with `weft base add NAME "
        f"SOURCE`; or {way}",
        reason="BASE_UNKNOWN",
        metadata={"base": said[:200]},
    )


def _committed(by_path: Mapping[str, BranchFile], open_blob: OpenBlob) -> Ready | Unfinished:
    with open_blob(by_path[artifact.MANIFEST].sha256) as file:
        data = file.read(manifests.MAX_BYTES + 1)
    manifest = Manifest.parse(data)
    listed = {entry.path: entry for entry in manifest.files}
    wrong = sorted(
        path
        for path, entry in listed.items()
        if path not in by_path or (by_path[path].sha256, by_path[path].size_bytes) != (entry.sha256, entry.size)
    )
    if wrong:
        return Unfinished(
            f"{', '.join(wrong[:5])}: not there as {artifact.MANIFEST} lists it (without a manifest on the branch, one "
            "is made)"
        )
    extra = sorted(by_path.keys() - listed.keys() - {artifact.MANIFEST})
    if extra:
        raise InvalidInputError(
            f"{', '.join(extra[:5])}: {artifact.MANIFEST} does not list it: delete it in the same commit "
            "(`delete_patterns`), or delete the manifest, and one is made",
            reason="ARTIFACT_REFUSED",
        )
    return Ready(data)


def _same_config(version: Version, config: BranchFile | None) -> bool:
    theirs = next((file.sha256 for file in version.manifest.files if file.path == artifact.CONFIG), None)
    return theirs == (config.sha256 if config else None)


def _with_files(version: Version, files: Sequence[BranchFile]) -> bytes:
    """An earlier version's manifest with other files beside the same weights: base, metrics, provenance hold on."""
    entries = _entries(files)
    if sorted(version.manifest.files, key=lambda entry: entry.path) == entries:
        return version.manifest_bytes
    return replace(version.manifest, files=entries, created=_now()).canonical_bytes()


def _from_peft(
    files: Sequence[BranchFile],
    config: Mapping[str, Any],
    weights: BranchFile,
    name: str,
    bases: BaseStore,
    open_blob: OpenBlob,
) -> bytes:
    base = find_base(bases, _text(config, "base_model_name_or_path"), _text(config, "revision"))
    with open_blob(weights.sha256) as file:
        header = headers.read_header(file, weights.size_bytes, artifact.WEIGHTS)
        kind, params = peft_format.from_peft(config, header.shapes, base)
        tensors = artifact.tensor_table(file, header)
    return Manifest(
        kind=kind,
        name=name,
        created=_now(),
        license="",
        base=base.fingerprint,
        adapter=kind_schema(kind).block(params),
        tensors=tensors,
        files=_entries(files),
        tokenizer={},
        provenance={},
        metrics=[],
    ).canonical_bytes()


def _from_adapterhub(
    by_path: Mapping[str, BranchFile],
    config: Mapping[str, Any],
    name: str,
    bases: BaseStore,
    open_blob: OpenBlob,
    store: Store,
) -> bytes:
    base = find_base(bases, _text(config, "model_name"), key="model_name")
    with tempfile.TemporaryDirectory(prefix="weft-import-") as scratch:
        saved, made = Path(scratch) / "saved", Path(scratch) / "artifact"
        for directory in (saved, made):
            directory.mkdir()
        for path, file in by_path.items():
            if path == artifact.WEIGHTS:
                continue
            # Its configuration is not part of the artifact; what lies beside it is.
            taken = path in (artifact.CONFIG, adapterhub_format.WEIGHTS)
            _copy(open_blob, file.sha256, (saved if taken else made) / path)
        adapterhub_format.import_adapterhub(saved, base, made, name=name)
        for made_file in artifact.files_of(made, artifact.read(made).kind):
            store(made_file)
        return artifact.read(made).canonical_bytes()


def _copy(open_blob: OpenBlob, digest: str, path: Path) -> None:
    with open_blob(digest) as source, path.open("xb") as sink:
        while chunk := source.read(CHUNK_BYTES):
            sink.write(chunk)


def _config(config: BranchFile, open_blob: OpenBlob) -> dict[str, Any]:
    with open_blob(config.sha256) as file:
        return peft_format.parse_config(file.read(artifact.MAX_CONFIG_BYTES + 1))


def _is_adapterhub(config: Mapping[str, Any]) -> bool:
    return "peft_type" not in config and isinstance(config.get("config"), dict) and "model_type" in config


def _entries(files: Sequence[BranchFile]) -> list[FileEntry]:
    return [
        FileEntry(file.path, file.size_bytes, file.sha256, artifact.media_type(file.path))
        for file in sorted(files)
        if file.path != artifact.MANIFEST
    ]


def _text(config: Mapping[str, Any], key: str) -> str:
    value = config.get(key)
    return value if isinstance(value, str) else ""


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
