"""Receives blobs: uploads that go on where they broke, hashed before anything becomes a blob.

An upload is one append-only file in a local directory, named by digest and size, so that whoever wants to send the same
bytes finds it and goes on. It outlives the process that received it. Knows nothing of where blobs are kept.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BufferedRandom
from pathlib import Path
from typing import Any

from weft_registry import digest as digests
from weft_registry.arriving import ArrivingWeights, SoundWeights
from weft_registry.beside import Fed
from weft_registry.blobs.store import BlobLimits, UploadState, upload_id_of
from weft_registry.errors import CorruptionError, ExhaustedError, InvalidInputError, NotFoundError, OffsetError
from weft_registry.inodes import still_there
from weft_registry.writeback import begin_writeback

_MAX_RUNNING = 256
_LOOK_AT_ONCE = 4
"""Threads that hash chunks while they are written."""
_UPLOAD_ID = re.compile(r"([0-9a-f]{64})-([0-9]{1,15})(-[0-9a-f]{1,12})?")

_Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class _Running:
    """What is known of an upload's first bytes, all of which this process wrote."""

    sha256: Any
    arriving: ArrivingWeights
    left: _Stamp
    """The stamp of the file as this process left it."""

    @property
    def fed(self) -> tuple[Fed, Fed]:
        """Those that are given every byte."""
        return self.sha256, self.arriving


class ReceivingStore(ABC):
    """The part of a blob store that receives. Owns `uploads` and `tmp` in a local directory, and the hashes of what is
    being received."""

    def __init__(self, root: Path, limits: BlobLimits | None, sound: SoundWeights | None) -> None:
        """`sound`: where to note what was seen of weights as they arrived; None where it counts for nothing."""
        self._limits = limits or BlobLimits()
        self._uploads, self._temporary = root / "uploads", root / "tmp"
        self._sound_weights = sound
        self._lock, self._running = threading.Lock(), dict[str, _Running]()
        self._beside = ThreadPoolExecutor(_LOOK_AT_ONCE, "weft-beside")
        for directory in (self._uploads, self._temporary):
            directory.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def _held(self, digest: str) -> int | None:
        """The size of a blob that is held already, in bytes."""

    @abstractmethod
    def _keep(self, received: Path, digest: str) -> None:
        """Makes a complete, hashed and synced file the blob, and takes it away from where it was."""

    def start_upload(self, digest: str, size_bytes: int, owner: str = "") -> UploadState:
        """See `BlobStore.start_upload`."""
        digests.check(digest)
        self._check_size(digest, size_bytes)
        upload_id = upload_id_of(digest, size_bytes, owner)
        # An owner has to show the bytes itself, and is not told that somebody else has.
        held = None if owner else self._held(digest)
        if held is not None:
            return UploadState(upload_id, held, size_bytes, complete=True)
        path = self._uploads / upload_id
        if not path.exists():
            self._make_room()
        with path.open("ab") as file:
            os.utime(file.fileno())  # Whoever starts it again is about to go on: it is not idle.
            return UploadState(upload_id, file.seek(0, os.SEEK_END), size_bytes, complete=False)

    def query_upload(self, upload_id: str) -> UploadState:
        """See `BlobStore.query_upload`."""
        path, digest, size_bytes = self._upload(upload_id)
        try:
            return UploadState(upload_id, path.stat().st_size, size_bytes, complete=False)
        except FileNotFoundError:
            # The answer to `finish` may have been lost: what matters to the sender is that the blob is there.
            owned = upload_id.count("-") > 1
            if not owned and self._held(digest) is not None:
                return UploadState(upload_id, size_bytes, size_bytes, complete=True)
            raise no_upload(upload_id) from None

    def write_upload(self, upload_id: str, offset: int, chunk: bytes) -> UploadState:
        """See `BlobStore.write_upload`."""
        path, digest, size_bytes = self._upload(upload_id)
        with space(), _locked(path) as file:
            committed = file.seek(0, os.SEEK_END)
            if offset != committed or committed + len(chunk) > size_bytes:
                raise OffsetError(
                    f"upload of {digest}: {len(chunk)} bytes at {offset}, but {committed} of {size_bytes} bytes are "
                    "committed: continue there",
                    metadata={"committed_bytes": str(committed), "size_bytes": str(size_bytes)},
                )
            running = self._running_until(upload_id, offset, _stamp(file), size_bytes)
            behind = [self._beside.submit(fed.update, chunk) for fed in running.fed] if running else []
            file.write(chunk)
            file.flush()
            begin_writeback(file, len(chunk))
            for done in behind:
                done.result()
            if running is not None:
                self._remember(upload_id, replace(running, left=_stamp(file)))
        return UploadState(upload_id, committed + len(chunk), size_bytes, complete=False)

    def finish_upload(self, upload_id: str) -> UploadState:
        """See `BlobStore.finish_upload`."""
        path, digest, size_bytes = self._upload(upload_id)
        with _locked(path) as file:
            committed = file.seek(0, os.SEEK_END)
            if committed != size_bytes:
                raise OffsetError(
                    f"upload of {digest}: {committed} of {size_bytes} bytes are there: send the rest first",
                    metadata={"committed_bytes": str(committed), "size_bytes": str(size_bytes)},
                )
            found, arrived = self._hashed(upload_id, file)
            if found != digest:
                path.unlink()
                raise CorruptionError(
                    f"upload of {digest}: the bytes received have digest {found}; nothing was stored: send it again",
                    reason="DIGEST_MISMATCH",
                    metadata={"digest": digest, "found": found},
                )
            os.fsync(file.fileno())
            self._keep(path, digest)
        if arrived is not None:
            self._note_arrived(digest, arrived)
        return UploadState(upload_id, size_bytes, size_bytes, complete=True)

    def knows_sound(self, digest: str, tensors: Sequence[str]) -> bool:
        """See `BlobStore.knows_sound`."""
        return self._sound_weights is not None and self._sound_weights.knows(digest, tensors)

    def _note_arrived(self, digest: str, arrived: ArrivingWeights) -> None:
        """What was seen of a file that has become this blob."""
        if self._sound_weights is not None:
            self._sound_weights.remember(digest, arrived)

    def _running_until(self, upload_id: str, offset: int, now: _Stamp, size_bytes: int) -> _Running | None:
        """What is known of the bytes before `offset`, if this process wrote all of them: whoever finishes need not read
        them again. None where another process wrote some."""
        with self._lock:
            known = self._running.pop(upload_id, None)
        if offset == 0:
            # Where it counts for nothing, nobody looks.
            looked_at = size_bytes if self._sound_weights is not None else 0
            return _Running(hashlib.sha256(), ArrivingWeights(looked_at), now)
        return known if known is not None and known.left == now else None

    def _remember(self, upload_id: str, running: _Running) -> None:
        with self._lock:
            self._running[upload_id] = running
            while len(self._running) > _MAX_RUNNING:
                self._running.pop(next(iter(self._running)))

    def _hashed(self, upload_id: str, file: BufferedRandom) -> tuple[str, ArrivingWeights | None]:
        """The digest of a received file, which is held; and what was seen of it as it arrived."""
        with self._lock:
            known = self._running.pop(upload_id, None)
        if known is not None and known.left == _stamp(file):
            return f"sha256:{known.sha256.hexdigest()}", known.arriving
        file.seek(0)
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest(), None

    def drop_idle_uploads(self, idle_s: float) -> int:
        """See `BlobStore.drop_idle_uploads`."""
        for path in self._temporary.iterdir():
            _drop_idle(path, idle_s)
        return sum(_drop_idle(path, idle_s) for path in self._uploads.iterdir())

    def _make_room(self) -> None:
        self.drop_idle_uploads(self._limits.upload_idle_s)
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

    def _upload(self, upload_id: str) -> tuple[Path, str, int]:
        match = _UPLOAD_ID.fullmatch(upload_id)
        if match is None:
            raise no_upload(upload_id)
        return self._uploads / upload_id, f"sha256:{match[1]}", int(match[2])


@contextmanager
def space() -> Iterator[None]:
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


def no_upload(upload_id: str) -> NotFoundError:
    """No upload of this id is open, or ever was."""
    return NotFoundError(
        f"no open upload {upload_id[:100]!r}: start it again",
        reason="UPLOAD_NOT_FOUND",
        metadata={"upload_id": upload_id[:100]},
    )


def changed(path: Path, found: str, found_bytes: int, digest: str, size_bytes: int) -> CorruptionError:
    """A local file is not what was promised of it."""
    return CorruptionError(
        f"{path.name}: {found_bytes} bytes with digest {found}, but {size_bytes} bytes with digest {digest} were "
        "promised: it changed since the manifest was made",
        reason="DIGEST_MISMATCH",
        metadata={"digest": digest, "found": found},
    )


@contextmanager
def _locked(path: Path) -> Iterator[BufferedRandom]:
    """The upload's file, held against other writers of it."""
    try:
        file = path.open("r+b")
    except FileNotFoundError:
        raise no_upload(path.name) from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        # While this one waited for the lock, another writer may have finished: then the file is a blob now.
        if not still_there(file.fileno(), path):
            raise no_upload(path.name)
        yield file


def _stamp(file: BufferedRandom) -> _Stamp:
    """What tells whether somebody else wrote to a file: its inode, its size, and when it was last written to."""
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns


def _drop_idle(path: Path, idle_s: float) -> bool:
    """Removes a file that nobody holds and nobody wrote to for a while."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            idle = time.time() - os.fstat(file.fileno()).st_mtime >= idle_s
            if idle and still_there(file.fileno(), path):
                path.unlink()
                return True
    except (FileNotFoundError, BlockingIOError):
        pass  # Another process finished it, dropped it, or is writing to it.
    return False
