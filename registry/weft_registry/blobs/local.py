"""Blobs in a directory: `blobs/sha256/ab/<hex>`, safe for several processes and for a kill -9 at any moment.

A blob appears by rename, complete, hashed and synced, or not at all. An upload is one append-only file, named by digest
and size, so that whoever wants to send the same bytes finds it and goes on.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedRandom, BufferedReader
from pathlib import Path

from weft_registry import digest as digests
from weft_registry.api import Progress
from weft_registry.blobs.store import BlobLimits, UploadState, VerifiedChunks
from weft_registry.digest import CHUNK_BYTES
from weft_registry.errors import CorruptionError, ExhaustedError, InvalidInputError, NotFoundError, OffsetError

_UPLOAD_ID = re.compile(r"([0-9a-f]{64})-([0-9]{1,15})")


class LocalBlobStore:
    """Owns one directory. Implements `weft_registry.blobs.store.BlobStore`."""

    def __init__(self, root: Path, limits: BlobLimits | None = None) -> None:
        self._limits = limits or BlobLimits()
        self._blobs, self._uploads, self._temporary = root / "blobs" / "sha256", root / "uploads", root / "tmp"
        for directory in (self._blobs, self._uploads, self._temporary):
            directory.mkdir(parents=True, exist_ok=True)

    def missing(self, digests: Sequence[str]) -> list[str]:
        """See `BlobStore.missing`."""
        return [digest for digest in digests if not self._path(digest).is_file()]

    def size(self, digest: str) -> int:
        """See `BlobStore.size`."""
        try:
            return self._path(digest).stat().st_size
        except FileNotFoundError:
            raise _no_blob(digest) from None

    def read(self, digest: str, offset: int = 0, limit: int = 0) -> Iterator[bytes]:
        """See `BlobStore.read`."""
        size = self.size(digest)
        if not 0 <= offset <= size or limit < 0:
            raise OffsetError(
                f"blob {digest}: cannot read {limit} bytes from {offset}: it has {size}",
                metadata={"size_bytes": str(size)},
            )
        if offset or 0 < limit < size:
            return self._read_part(digest, offset, min(limit or size, size - offset))
        return VerifiedChunks(digest, self._read_all(digest))

    def open(self, digest: str) -> BufferedReader:
        """See `BlobStore.open`."""
        try:
            return self._path(digest).open("rb")
        except FileNotFoundError:
            raise _no_blob(digest) from None

    def verify(self, digest: str) -> int:
        """See `BlobStore.verify`."""
        with self.open(digest) as file:
            found = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        if found != digest:
            raise _corrupt(digest, found)
        return size

    def put_file(self, path: Path, digest: str, size_bytes: int, progress: Progress | None = None) -> None:
        """See `BlobStore.put_file`."""
        target = self._path(digest)
        self._check_size(digest, size_bytes)
        if target.is_file():
            if progress:
                progress(size_bytes)
            return
        temporary = self._temporary / f"{os.getpid()}-{uuid.uuid4().hex}"
        sha256, size = hashlib.sha256(), 0
        try:
            with _space(), path.open("rb") as source, temporary.open("xb") as sink:
                while chunk := source.read(CHUNK_BYTES):
                    sha256.update(chunk)
                    sink.write(chunk)
                    size += len(chunk)
                    if progress:
                        progress(len(chunk))
                sink.flush()
                os.fsync(sink.fileno())
            found = "sha256:" + sha256.hexdigest()
            if (found, size) != (digest, size_bytes):
                raise CorruptionError(
                    f"{path.name}: {size} bytes with digest {found}, but {size_bytes} bytes with digest {digest} were "
                    "promised: it changed since the manifest was made",
                    reason="DIGEST_MISMATCH",
                    metadata={"digest": digest, "found": found},
                )
            self._install(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def start_upload(self, digest: str, size_bytes: int) -> UploadState:
        """See `BlobStore.start_upload`."""
        target = self._path(digest)
        self._check_size(digest, size_bytes)
        upload_id = f"{digest.removeprefix('sha256:')}-{size_bytes}"
        if target.is_file():
            return UploadState(upload_id, target.stat().st_size, size_bytes, complete=True)
        path = self._uploads / upload_id
        if not path.exists():
            self._make_room()
            path.touch()
        return UploadState(upload_id, path.stat().st_size, size_bytes, complete=False)

    def query_upload(self, upload_id: str) -> UploadState:
        """See `BlobStore.query_upload`."""
        path, digest, size_bytes = self._upload(upload_id)
        try:
            return UploadState(upload_id, path.stat().st_size, size_bytes, complete=False)
        except FileNotFoundError:
            # The answer to `finish` may have been lost: what matters to the sender is that the blob is there.
            if self._path(digest).is_file():
                return UploadState(upload_id, size_bytes, size_bytes, complete=True)
            raise _no_upload(upload_id) from None

    def write_upload(self, upload_id: str, offset: int, chunk: bytes) -> UploadState:
        """See `BlobStore.write_upload`."""
        path, digest, size_bytes = self._upload(upload_id)
        with _space(), self._locked(path) as file:
            committed = file.seek(0, os.SEEK_END)
            if offset != committed or committed + len(chunk) > size_bytes:
                raise OffsetError(
                    f"upload of {digest}: {len(chunk)} bytes at {offset}, but {committed} of {size_bytes} bytes are "
                    "committed: continue there",
                    metadata={"committed_bytes": str(committed), "size_bytes": str(size_bytes)},
                )
            file.write(chunk)
        return UploadState(upload_id, committed + len(chunk), size_bytes, complete=False)

    def finish_upload(self, upload_id: str) -> UploadState:
        """See `BlobStore.finish_upload`."""
        path, digest, size_bytes = self._upload(upload_id)
        with self._locked(path) as file:
            committed = file.seek(0, os.SEEK_END)
            if committed != size_bytes:
                raise OffsetError(
                    f"upload of {digest}: {committed} of {size_bytes} bytes are there: send the rest first",
                    metadata={"committed_bytes": str(committed), "size_bytes": str(size_bytes)},
                )
            file.seek(0)
            found = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
            if found != digest:
                path.unlink()
                raise CorruptionError(
                    f"upload of {digest}: the bytes received have digest {found}; nothing was stored: send it again",
                    reason="DIGEST_MISMATCH",
                    metadata={"digest": digest, "found": found},
                )
            os.fsync(file.fileno())
            self._install(path, self._path(digest))
        return UploadState(upload_id, size_bytes, size_bytes, complete=True)

    def _read_all(self, digest: str) -> Iterator[bytes]:
        sha256, held = hashlib.sha256(), b""
        with self.open(digest) as file:
            while chunk := file.read(CHUNK_BYTES):
                sha256.update(chunk)
                if held:
                    yield held
                held = chunk
        # The last chunk is given only once the whole is known to be right: nobody ends up with a complete wrong file.
        if "sha256:" + sha256.hexdigest() != digest:
            raise _corrupt(digest, "sha256:" + sha256.hexdigest())
        if held:
            yield held

    def _read_part(self, digest: str, offset: int, length: int) -> Iterator[bytes]:
        # A part cannot be checked alone, so the whole is, first.
        self.verify(digest)
        with self.open(digest) as file:
            file.seek(offset)
            while length and (chunk := file.read(min(length, CHUNK_BYTES))):
                length -= len(chunk)
                yield chunk

    def _install(self, temporary: Path, target: Path) -> None:
        """Makes a complete, synced file the blob. Whoever comes second replaces equal bytes by equal bytes."""
        target.parent.mkdir(exist_ok=True)
        temporary.replace(target)
        # After the rename: a process killed in between leaves a writable blob, not an upload that cannot be resumed.
        target.chmod(0o444)
        for directory in (target.parent, self._blobs):
            descriptor = os.open(directory, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    @contextmanager
    def _locked(self, path: Path) -> Iterator[BufferedRandom]:
        """The upload's file, held against other writers of it."""
        try:
            file = path.open("r+b")
        except FileNotFoundError:
            raise _no_upload(path.name) from None
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # While this one waited for the lock, another writer may have finished: then the file is a blob now.
            try:
                same = os.path.samestat(os.fstat(file.fileno()), path.stat())
            except FileNotFoundError:
                same = False
            if not same:
                raise _no_upload(path.name)
            yield file

    def _make_room(self) -> None:
        now = time.time()
        for directory in (self._uploads, self._temporary):
            for path in directory.iterdir():
                try:
                    if now - path.stat().st_mtime > self._limits.upload_idle_s:
                        path.unlink()
                except FileNotFoundError:
                    continue  # Another process finished or dropped it.
        count = sum(1 for _ in self._uploads.iterdir())
        if count >= self._limits.max_open_uploads:
            raise ExhaustedError(
                f"{count} uploads are open, the most there may be: finish some, or come back when they have expired",
                reason="TOO_MANY_UPLOADS",
                retry_after_s=60.0,
            )

    def _check_size(self, digest: str, size_bytes: int) -> None:
        if size_bytes < 0:
            raise InvalidInputError(f"size_bytes: {size_bytes} is negative")
        if size_bytes > self._limits.max_blob_bytes:
            raise ExhaustedError(
                f"blob {digest}: {size_bytes} bytes; this registry takes at most {self._limits.max_blob_bytes}",
                reason="BLOB_TOO_LARGE",
            )

    def _path(self, digest: str) -> Path:
        hexadecimal = digests.check(digest).removeprefix("sha256:")
        return self._blobs / hexadecimal[:2] / hexadecimal

    def _upload(self, upload_id: str) -> tuple[Path, str, int]:
        match = _UPLOAD_ID.fullmatch(upload_id)
        if match is None:
            raise _no_upload(upload_id)
        return self._uploads / upload_id, f"sha256:{match[1]}", int(match[2])


@contextmanager
def _space() -> Iterator[None]:
    """Says so when the disk is full. What was written of an upload stays, and is where it goes on."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ExhaustedError(
            f"the registry has no room for these bytes ({error.strerror}): free some space, then go on",
            reason="DISK_FULL",
        ) from error


def _no_blob(digest: str) -> NotFoundError:
    return NotFoundError(f"no blob {digest}", reason="BLOB_NOT_FOUND", metadata={"digest": digest})


def _no_upload(upload_id: str) -> NotFoundError:
    return NotFoundError(
        f"no open upload {upload_id[:100]!r}: start it again",
        reason="UPLOAD_NOT_FOUND",
        metadata={"upload_id": upload_id[:100]},
    )


def _corrupt(digest: str, found: str) -> CorruptionError:
    return CorruptionError(
        f"blob {digest} is corrupt on disk: its bytes have digest {found}; restore it from a backup or push it again "
        "after removing the damaged file",
        reason="BLOB_CORRUPT",
        metadata={"digest": digest, "found": found},
    )
