"""A backup in a directory: `catalog.jsonl`, and the blobs as the registry itself keeps them, `blobs/sha256/ab/<hex>`.

A later backup into the same directory brings only what is new. The catalog is replaced last and by one rename: a backup
that was broken off leaves the earlier one whole, and what it brought for the next attempt.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from weft_registry.api import Progress
from weft_registry.blobs.store import BlobStore
from weft_registry.errors import NotFoundError, PreconditionError
from weft_registry.upkeep.dump import Blob, Dump
from weft_registry.writeback import begin_writeback

CATALOG = "catalog.jsonl"
_PARTIAL = ".partial"


class DirectoryWriter:
    """Writes one backup. Made by `writing`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.catalog = root / (CATALOG + _PARTIAL)
        """Where the catalog's dump is to be written."""

    def begin(self) -> None:
        """The dump is written, and blobs may come."""

    def holds(self, blob: Blob) -> bool:
        """Whether an earlier backup brought this blob."""
        try:
            return _path(self._root, blob.digest).stat().st_size == blob.size_bytes
        except FileNotFoundError:
            return False

    def add(self, blob: Blob, chunks: Iterable[bytes]) -> None:
        """Stores a blob. `chunks` must have been checked against its digest by the time they end."""
        path = _path(self._root, blob.digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + _PARTIAL)
        with partial.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
                begin_writeback(file, len(chunk))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync(path.parent)

    def finish(self) -> None:
        """Makes it the backup that the directory holds."""
        with self.catalog.open("rb") as file:
            os.fsync(file.fileno())
        # The directories of the blobs were made in these.
        _sync(self._root / "blobs" / "sha256")
        _sync(self._root / "blobs")
        self.catalog.replace(self._root / CATALOG)
        _sync(self._root)


class DirectoryReader:
    """Reads the backup that a directory holds."""

    def __init__(self, root: Path) -> None:
        """Raises `NotFoundError` if `root` holds no backup, and as `Dump`."""
        if not (root / CATALOG).is_file():
            raise NotFoundError(
                f"{root} holds no backup: there is no {CATALOG} in it. `weft registry backup {root}` writes one",
                reason="BACKUP_NOT_FOUND",
            )
        self._root = root
        self.dump = Dump(root / CATALOG)

    def close(self) -> None:
        """Nothing is held open."""

    def put(self, blob: Blob, store: BlobStore, progress: Progress) -> None:
        """Stores a blob of the backup. Raises `CorruptionError` if its bytes are not what they were."""
        store.put_file(_path(self._root, blob.digest), blob.digest, blob.size_bytes, progress)


@contextmanager
def writing(root: Path) -> Iterator[DirectoryWriter]:
    """Holds the directory, to write a backup into it.

    Raises `PreconditionError` if another backup is writing there, or if it holds something else.
    """
    if root.exists() and not root.is_dir():
        raise PreconditionError(f"{root} is no directory: name one, or a new file that ends in .tar")
    root.mkdir(parents=True, exist_ok=True)
    foreign = {path.name for path in root.iterdir()} - {CATALOG, CATALOG + _PARTIAL, "blobs", ".lock"}
    if foreign:
        raise PreconditionError(
            f"{root} holds something else ({', '.join(sorted(foreign)[:3])}): name an empty directory, or that of an "
            "earlier backup",
            reason="DESTINATION_EXISTS",
        )
    (root / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PreconditionError(
                f"another backup is writing into {root}: wait for it, or name another directory",
                reason="BACKUP_RUNNING",
            ) from None
        yield DirectoryWriter(root)


def _path(root: Path, digest: str) -> Path:
    hexadecimal = digest.removeprefix("sha256:")
    return root / "blobs" / "sha256" / hexadecimal[:2] / hexadecimal


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
