"""Blobs in a directory: `blobs/sha256/ab/<hex>`, safe for several processes and for a kill -9 at any moment.

A blob appears by rename, complete, hashed and synced, or not at all.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path

from weft_registry import digest as digests
from weft_registry.api import Progress
from weft_registry.arriving import ArrivingWeights, SoundWeights
from weft_registry.beside import Beside, HashBeside
from weft_registry.blobs.staging import ReceivingStore, changed, space
from weft_registry.blobs.store import BlobLimits, StoredBlob
from weft_registry.blobs.verified import VerifyingStore, no_blob
from weft_registry.digest import CHUNK_BYTES
from weft_registry.writeback import begin_writeback


class LocalBlobStore(ReceivingStore, VerifyingStore):
    """Owns one directory. Implements `weft_registry.blobs.store.BlobStore`."""

    def __init__(self, root: Path, limits: BlobLimits | None = None) -> None:
        super().__init__(root, limits, SoundWeights())
        self.where = str(root)
        self._blobs = root / "blobs" / "sha256"
        self._blobs.mkdir(parents=True, exist_ok=True)

    def check_access(self) -> None:
        """See `BlobStore.check_access`. The directories were made, so they are there."""

    def missing(self, digests: Sequence[str]) -> list[str]:
        """See `BlobStore.missing`."""
        return [digest for digest in digests if self._held(digest) is None]

    def size(self, digest: str) -> int:
        """See `BlobStore.size`."""
        held = self._held(digest)
        if held is None:
            raise no_blob(digest)
        return held

    def open(self, digest: str) -> BufferedReader:
        """See `BlobStore.open`."""
        try:
            return self._path(digest).open("rb")
        except FileNotFoundError:
            raise no_blob(digest) from None

    def put_file(self, path: Path, digest: str, size_bytes: int, progress: Progress | None = None) -> None:
        """See `BlobStore.put_file`."""
        self._check_size(digest, size_bytes)
        if self._held(digest) is not None:
            if progress:
                progress(size_bytes)
            return
        temporary = self._temporary / f"{os.getpid()}-{uuid.uuid4().hex}"
        size = 0
        try:
            arriving = ArrivingWeights(size_bytes)
            with (
                HashBeside() as hashing,
                Beside(arriving) as looking,
                space(),
                path.open("rb") as source,
                temporary.open("xb") as sink,
            ):
                fcntl.flock(sink, fcntl.LOCK_EX)  # Whoever drops idle files sees that this one is not.
                while chunk := source.read(CHUNK_BYTES):
                    hashing.update(chunk)
                    looking.update(chunk)
                    sink.write(chunk)
                    begin_writeback(sink, len(chunk))
                    size += len(chunk)
                    if progress:
                        progress(len(chunk))
                sink.flush()
                os.fsync(sink.fileno())
                found = hashing.digest()
                if (found, size) != (digest, size_bytes):
                    raise changed(path, found, size, digest, size_bytes)
                looking.catch_up()
                self._note_arrived(digest, arriving)
                self._install(temporary, self._path(digest))
        finally:
            temporary.unlink(missing_ok=True)

    def list_blobs(self) -> Iterator[StoredBlob]:
        """See `BlobStore.list_blobs`."""
        for directory in sorted(self._blobs.iterdir()):
            with os.scandir(directory) as entries:
                for entry in entries:
                    digest = f"sha256:{entry.name}"
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue  # Deleted since.
                    known = digests.is_digest(digest) and entry.name.startswith(directory.name)
                    if known and entry.is_file(follow_symlinks=False):
                        yield StoredBlob(digest, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))

    def delete_blobs(self, digests: Sequence[str]) -> None:
        """See `BlobStore.delete_blobs`."""
        for path in [self._path(digest) for digest in digests]:
            path.unlink(missing_ok=True)

    def _held(self, digest: str) -> int | None:
        try:
            return self._path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def _repair(self) -> str:
        return "restore it from a backup or push it again after removing the damaged file"

    def _keep(self, received: Path, digest: str) -> None:
        self._install(received, self._path(digest))

    def _install(self, temporary: Path, target: Path) -> None:
        """Makes a complete, synced file the blob. Whoever comes second replaces equal bytes by equal bytes."""
        target.parent.mkdir(exist_ok=True)
        # When it was stored is now, and not when its last byte came.
        os.utime(temporary)
        temporary.replace(target)
        # After the rename: a process killed in between leaves a writable blob, not an upload that cannot be resumed.
        target.chmod(0o444)
        for directory in (target.parent, self._blobs):
            descriptor = os.open(directory, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _path(self, digest: str) -> Path:
        hexadecimal = digests.check(digest).removeprefix("sha256:")
        return self._blobs / hexadecimal[:2] / hexadecimal
