"""A backup in one file: a tar archive of `catalog.jsonl` and the blobs, in the order in which the catalog lists them.

It is written and read from front to back. Nothing is ever extracted to a path that the archive names.
"""

from __future__ import annotations

import fcntl
import os
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from weft_registry.api import Progress
from weft_registry.blobs.store import BlobStore
from weft_registry.digest import CHUNK_BYTES
from weft_registry.errors import CorruptionError, NotFoundError, PreconditionError
from weft_registry.upkeep.backup_directory import CATALOG
from weft_registry.upkeep.dump import Blob, Dump

SUFFIX = ".tar"


class ArchiveWriter:
    """Writes one backup. Made by `writing`."""

    def __init__(self, archive: tarfile.TarFile, catalog: Path) -> None:
        self._archive = archive
        self.catalog = catalog
        """Where the catalog's dump is to be written."""

    def begin(self) -> None:
        """The dump is written, and blobs may come."""
        self._archive.add(self.catalog, CATALOG, filter=_anonymous)

    def holds(self, blob: Blob) -> bool:
        """Nothing is there already."""
        return False

    def add(self, blob: Blob, chunks: Iterable[bytes]) -> None:
        """Appends a blob. `chunks` must have been checked against its digest by the time they end."""
        entry = tarfile.TarInfo(_name(blob))
        entry.size = blob.size_bytes
        entry.mode = 0o444
        source = _Chunks(iter(chunks))
        self._archive.addfile(entry, source)  # type: ignore[arg-type]  # Only `read` is asked of it.
        if source.read(1):
            raise CorruptionError(f"blob {blob.digest} has more than the {blob.size_bytes} bytes that the catalog says")
        self._archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps a record of each, and there may be millions.

    def finish(self) -> None:
        """Nothing is left to do before the archive is closed."""


class ArchiveReader:
    """Reads a backup from an archive, which it keeps open."""

    def __init__(self, path: Path) -> None:
        """Raises `NotFoundError`, `CorruptionError` for a file that is no such archive, and as `Dump`."""
        if not path.is_file():
            raise NotFoundError(f"{path}: no such backup", reason="BACKUP_NOT_FOUND")
        self._path = path
        try:
            self._archive = tarfile.open(path, "r:")  # noqa: SIM115  # Closed by `close`.
            entry = self._archive.next()
        except tarfile.TarError as error:
            raise _damaged(path, str(error)) from error
        if entry is None or entry.name != CATALOG or not entry.isreg():
            raise _damaged(path, f"it does not begin with {CATALOG}")
        self.dump = Dump(path, entry.offset_data, entry.size)

    def put(self, blob: Blob, store: BlobStore, progress: Progress) -> None:
        """Stores the next blob of the backup, going on where an earlier attempt was broken off.

        Raises `CorruptionError` if its bytes are not what they were. Blobs before it in the archive are passed over.
        """
        try:
            entry = self._find(blob)
            state = store.start_upload(blob.digest, blob.size_bytes)
            offset = 0
            for chunk in self._bytes(entry):
                fresh = chunk[max(0, state.committed_bytes - offset) :]
                offset += len(chunk)
                if fresh and not state.complete:
                    state = store.write_upload(state.upload_id, state.committed_bytes, fresh)
                progress(len(chunk))
        except tarfile.TarError as error:
            raise _damaged(self._path, str(error)) from error
        if not state.complete:
            store.finish_upload(state.upload_id)

    def close(self) -> None:
        """Closes the archive."""
        self._archive.close()

    def _find(self, blob: Blob) -> tarfile.TarInfo:
        while (entry := self._archive.next()) is not None:
            self._archive.members.clear()  # type: ignore[attr-defined]
            if entry.name == _name(blob):
                if not entry.isreg() or entry.size != blob.size_bytes:
                    break
                return entry
        raise _damaged(self._path, f"blob {blob.digest} is not in it")

    def _bytes(self, entry: tarfile.TarInfo) -> Iterator[bytes]:
        file: IO[bytes] | None = self._archive.extractfile(entry)
        assert file is not None, entry.name
        left = entry.size
        while left:
            chunk = file.read(min(CHUNK_BYTES, left))
            if not chunk:
                raise _damaged(self._path, "it is cut off")
            left -= len(chunk)
            yield chunk


@contextmanager
def writing(path: Path) -> Iterator[ArchiveWriter]:
    """Writes a backup into a new archive, which appears when it is whole.

    Raises `PreconditionError` if the file is there already, or if another backup is writing it.
    """
    there = PreconditionError(f"{path} is there already: name another file", reason="DESTINATION_EXISTS")
    if path.exists():
        raise there
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, catalog = (path.with_name(f".{path.name}.{what}partial") for what in ("", "catalog."))
    with partial.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PreconditionError(
                f"another backup is writing {path}: wait for it, or name another file", reason="BACKUP_RUNNING"
            ) from None
        try:
            file.truncate(0)  # What a killed backup left.
            with tarfile.open(fileobj=file, mode="w|", format=tarfile.GNU_FORMAT) as archive:
                yield ArchiveWriter(archive, catalog)
            file.flush()
            os.fsync(file.fileno())
            os.link(partial, path)
        except FileExistsError:
            raise there from None
        finally:
            partial.unlink(missing_ok=True)
            catalog.unlink(missing_ok=True)


class _Chunks:
    """Chunks as a file that is read from front to back."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def read(self, size: int) -> bytes:
        parts = [self._rest]
        have = len(self._rest)
        while have < size and (chunk := next(self._chunks, b"")):
            parts.append(chunk)
            have += len(chunk)
        data = b"".join(parts)
        self._rest = data[size:]
        return data[:size]


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _name(blob: Blob) -> str:
    hexadecimal = blob.digest.removeprefix("sha256:")
    return f"blobs/sha256/{hexadecimal[:2]}/{hexadecimal}"


def _damaged(path: Path, why: str) -> CorruptionError:
    return CorruptionError(f"{path} is no whole backup: {why}", reason="BACKUP_DAMAGED")
