"""Moves artifacts between a directory and a registry, embedded or remote.

What arrives is verified here, whoever sent it: a pulled directory holds the bytes of exactly one version, or is not
there.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from weft_registry import artifact, validation
from weft_registry import digest as digests
from weft_registry.admin_api import RegistryAdminApi
from weft_registry.api import Progress, Published, RegistryApi, Version
from weft_registry.beside import Beside, HashBeside
from weft_registry.errors import CorruptionError, InvalidInputError, PreconditionError
from weft_registry.home import Home
from weft_registry.inodes import still_there
from weft_registry.manifest import FileEntry, Manifest
from weft_registry.reference import AdapterName
from weft_registry.writeback import begin_writeback

_ATTEMPTS = 3
"""How often a push sends bytes that the registry has lost meanwhile."""


def open_registry(home: Home, address: str | None = None) -> RegistryApi:
    """The registry at `address` ("HOST:PORT"), else at WEFT_REGISTRY, else the embedded one of `home`."""
    address = address or os.environ.get("WEFT_REGISTRY") or None
    if address is None:
        from weft_registry.embedded import EmbeddedRegistry

        return EmbeddedRegistry(home)
    from weft_registry.remote.registry import RemoteRegistry

    return RemoteRegistry(address)


def open_admin(home: Home, address: str | None = None) -> RegistryAdminApi:
    """The administration of the registry that `open_registry` would open."""
    address = address or os.environ.get("WEFT_REGISTRY") or None
    if address is None:
        from weft_registry.embedded import EmbeddedRegistry

        return EmbeddedRegistry(home)
    from weft_registry.remote.admin import RemoteAdmin

    return RemoteAdmin(address)


def push(
    registry: RegistryApi,
    directory: Path,
    adapter: AdapterName,
    *,
    tags: Sequence[str] = (),
    aliases: Sequence[str] = (),
    progress: Progress | None = None,
) -> Published:
    """Publishes an artifact directory: uploads the blobs that are not there yet, then publishes.

    `progress` counts up to `manifest.size_bytes`. Raises what `RegistryApi` raises, and `InvalidInputError` or
    `NotFoundError` for a directory that is no artifact, before anything is sent; weights that are others than when the
    manifest was made, while they are sent.
    """
    # The registry will validate too; doing it here names what is wrong before gigabytes are sent.
    manifest = validation.check_directory(directory)
    report = progress or _silent
    attempt = 1
    while True:
        _send(registry, directory, adapter, manifest, report)
        try:
            return registry.publish(
                adapter, manifest.canonical_bytes(), tags=tags, aliases=aliases, request_id=str(uuid.uuid4())
            )
        except PreconditionError as error:
            # Hours between the upload and now, or a collection without grace: the bytes are sent again.
            if error.reason != "BLOBS_MISSING" or attempt == _ATTEMPTS:
                raise
            attempt, report = attempt + 1, _silent


def _send(registry: RegistryApi, directory: Path, adapter: AdapterName, manifest: Manifest, report: Progress) -> None:
    """Uploads those files of an artifact that the registry does not hold."""
    missing = set(registry.find_missing(sorted({file.sha256 for file in manifest.files}), adapter))
    for file in manifest.files:
        if file.sha256 in missing:
            try:
                registry.upload(directory / file.path, file.sha256, file.size, report, adapter)
            except CorruptionError:
                validation.check_unchanged(directory, manifest)
                raise
            missing.discard(file.sha256)
        else:
            report(file.size)


def pull(
    registry: RegistryApi, reference: str | Version, destination: Path, progress: Progress | None = None
) -> Version:
    """Brings one version to `destination`, manifest included, and returns it.

    The reference is resolved once; every file is then read by digest, hashed, and the directory appears by one rename.
    Files that a broken-off pull of the same version brought are kept; a `destination` that holds this version already
    is left as it is. Raises `PreconditionError` if `destination` holds something else, `CorruptionError` if the
    registry sends wrong bytes, and what `RegistryApi.resolve` and `read_blob` raise.
    """
    version = registry.resolve(reference) if isinstance(reference, str) else reference
    if digests.of_bytes(version.manifest_bytes) != version.digest:
        raise CorruptionError(f"the manifest of {version.adapter} does not have the digest {version.digest}")
    manifest = version.manifest
    violations = artifact.check_paths((file.path for file in manifest.files), manifest.kind)
    if violations:
        raise artifact.refused(f"{version.adapter}@{version.digest}", violations)
    report = progress or _silent
    # Named by the version's digest, so that a second attempt at the same version finds what the first one brought.
    partial = destination.parent / f".{destination.name}.{version.digest.removeprefix('sha256:')[:16]}.partial"
    while not _is_pulled(destination, version):
        try:
            partial.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            if partial.exists():  # And is no directory.
                raise
            continue  # Another pull of the same version took it away, just when it was found there.
        with _held(partial) as held:
            if not held:  # Another pull of the same version has just finished.
                continue
            if _is_pulled(destination, version):
                shutil.rmtree(partial)
                break
            _fill(registry, partial, version, report)
            partial.rename(destination)
            _sync(destination.parent)
            return version
    report(manifest.size_bytes)
    return version


def _fill(registry: RegistryApi, partial: Path, version: Version, report: Progress) -> None:
    """Makes `partial` hold the version and nothing else: what is right stays, what is missing is fetched."""
    files = version.manifest.files
    for path in partial.iterdir():
        if path.name not in {file.path for file in files}:
            path.unlink()  # What a killed pull was just writing.
    for file in files:
        if _is_right(partial / file.path, file):
            report(file.size)
        else:
            _fetch(registry, file, partial / file.path, report)
    artifact.write_manifest(partial, version.manifest_bytes)
    _sync(partial)


def _is_pulled(destination: Path, version: Version) -> bool:
    """Whether `destination` holds the version. Raises `PreconditionError` if it holds something else."""
    if _holds(destination, version):
        return True
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise PreconditionError(
            f"{destination} is there already, and is not {version.adapter}@{version.digest}: pull to another directory",
            reason="DESTINATION_EXISTS",
        )
    return False


@contextmanager
def _held(partial: Path) -> Iterator[bool]:
    """Holds a directory against other pulls of the same version; false if it was renamed meanwhile."""
    try:
        descriptor = os.open(partial, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield still_there(descriptor, partial)
    finally:
        os.close(descriptor)


def _fetch(registry: RegistryApi, file: FileEntry, path: Path, report: Progress) -> None:
    """Writes one file under a temporary name, checks its digest, and renames it to `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex}")
    size = 0
    try:
        # The next bytes come while the last ones are hashed and written.
        with temporary.open("xb") as sink, HashBeside() as hashing, Beside(_Written(sink)) as writing:
            for chunk in registry.read_blob(file.sha256, unverified=True):
                size += len(chunk)
                if size > file.size:
                    break
                hashing.update(chunk)
                writing.update(chunk)
                report(len(chunk))
            writing.catch_up()
            sink.flush()
            os.fsync(sink.fileno())
            found = hashing.digest()
        if (found, size) != (file.sha256, file.size):
            _ask_what_is_wrong(registry, file)
            raise CorruptionError(
                f"{file.path}: the registry sent {size} bytes with digest {found}, not {file.size} with {file.sha256}; "
                "nothing was kept",
                reason="DIGEST_MISMATCH",
                metadata={"digest": file.sha256, "found": found},
            )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _ask_what_is_wrong(registry: RegistryApi, file: FileEntry) -> None:
    """A registry that holds damaged bytes says so, and what its owner can do about it, once it hashes them itself."""
    left = file.size
    for chunk in registry.read_blob(file.sha256):
        left -= len(chunk)
        if left < 0:
            return


class _Written:
    """Bytes that go to a file."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink

    def update(self, chunk: bytes) -> None:
        """The next ones."""
        self._sink.write(chunk)
        begin_writeback(self._sink, len(chunk))


def _is_right(path: Path, file: FileEntry) -> bool:
    return path.is_file() and path.stat().st_size == file.size and digests.of_file(path) == file.sha256


def _holds(directory: Path, version: Version) -> bool:
    """Whether `directory` is this version, every byte of it, and nothing else."""
    path = directory / artifact.MANIFEST
    if not path.is_file() or path.read_bytes() != version.manifest_bytes:
        return False
    try:
        found = {entry.name for entry in artifact.files_of(directory, version.manifest.kind)}
    except InvalidInputError:
        return False
    files = version.manifest.files
    return found == {file.path for file in files} and all(_is_right(directory / file.path, file) for file in files)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _silent(_done: int) -> None:
    return
