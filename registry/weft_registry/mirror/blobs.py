"""The blobs of a mirror: those it holds, and those it can bring. Implements `weft_registry.blobs.store.BlobStore`.

A blob that is not held is fetched when it is read, once for all who read it meanwhile; only blobs of versions that the
mirror knows are asked for, so that nobody reads the upstream through it by guessing digests. With a bound some of what
was held goes for what comes (`weft_registry.mirror.room`); what does not fit is given on from the file that it arrived
in, which is gone with its last reader.
"""

from __future__ import annotations

import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from weft_registry.api import Progress
from weft_registry.blobs.store import BlobStore, StoredBlob, UploadState
from weft_registry.blobs.verified import check_part, chunks_of
from weft_registry.errors import NotFoundError
from weft_registry.mirror.fetches import STALL_S, Fetch
from weft_registry.mirror.room import Room

_LEFT_S = 3600.0
T = TypeVar("T", BinaryIO, Iterator[bytes])
Bring = Callable[[str], Iterator[bytes]]
"""The upstream's bytes of a digest."""
SizeOf = Callable[[str], int | None]
"""The size of a blob that some version here has; None for others."""


class PullThroughBlobs:
    """Owns the fetches that are under way, and `scratch`, where they arrive. Thread-safe."""

    def __init__(
        self,
        held: BlobStore,
        bring: Bring,
        size_of: SizeOf,
        scratch: Path,
        stall_s: float = STALL_S,
        room: Room | None = None,
    ) -> None:
        """`room` is what keeps `held` within a bound; None for no bound."""
        self.where, self._room = held.where, room
        self._held, self._bring, self._size_of = held, bring, size_of
        self._scratch, self._stall_s = scratch, stall_s
        self._lock = threading.Lock()
        self._running: dict[str, Fetch] = {}
        scratch.mkdir(parents=True, exist_ok=True)
        # What a killed process left. Bytes that arrive, in this process or another, keep a file young.
        for path in scratch.iterdir():
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _LEFT_S:
                    path.unlink()

    def check_access(self) -> None:
        """See `BlobStore.check_access`."""
        self._held.check_access()

    def missing(self, digests: Sequence[str]) -> list[str]:
        """See `BlobStore.missing`: those that are not held here."""
        return self._held.missing(digests)

    def knows_sound(self, digest: str, tensors: Sequence[str]) -> bool:
        """See `BlobStore.knows_sound`: nothing is published here."""
        return self._held.knows_sound(digest, tensors)

    def size(self, digest: str) -> int:
        """See `BlobStore.size`. Asks nobody: the catalog knows it."""
        size = self._size_of(digest) if self._held.missing([digest]) else None
        return self._held.size(digest) if size is None else size

    def read(self, digest: str, offset: int = 0, limit: int = 0, *, unverified: bool = False) -> Iterator[bytes]:
        """See `BlobStore.read`. A whole blob is given as it arrives, a part of one once it is here."""

        def from_held() -> Iterator[bytes]:
            chunks = self._held.read(digest, offset, limit, unverified=unverified)
            return chunks if self._room is None else self._given(chunks, digest, offset, limit, unverified=unverified)

        found = self._held_or_fetched(digest, from_held)
        if not isinstance(found, _Arriving):
            return found
        if not offset and not limit:
            return found.fetch.follow(found.file)
        size = found.fetch.size
        return _part(found.whole(lambda: check_part(digest, size, offset, limit)), offset, min(limit or size, size))

    def open(self, digest: str) -> BinaryIO:
        """See `BlobStore.open`. Waits for a blob that is not here yet."""
        found = self._held_or_fetched(digest, lambda: self._held.open(digest))
        return found.whole() if isinstance(found, _Arriving) else found

    def verify(self, digest: str) -> int:
        """See `BlobStore.verify`. Brings a blob that is not here yet; what arrives is hashed."""
        # Whoever looks whether all is well says nothing of who will want it.
        done = _nothing if self._room is None else self._room.use(digest, is_read=False)
        try:
            started = self._fetch(digest)
            if started is None:
                return self._held.verify(digest)
            started.whole().close()
            return started.fetch.size
        finally:
            done()

    def put_file(self, path: Path, digest: str, size_bytes: int, progress: Progress | None = None) -> None:
        """See `BlobStore.put_file`."""
        self._held.put_file(path, digest, size_bytes, progress)

    def start_upload(self, digest: str, size_bytes: int, owner: str = "") -> UploadState:
        """See `BlobStore.start_upload`."""
        return self._held.start_upload(digest, size_bytes, owner)

    def query_upload(self, upload_id: str) -> UploadState:
        """See `BlobStore.query_upload`."""
        return self._held.query_upload(upload_id)

    def write_upload(self, upload_id: str, offset: int, chunk: bytes) -> UploadState:
        """See `BlobStore.write_upload`."""
        return self._held.write_upload(upload_id, offset, chunk)

    def finish_upload(self, upload_id: str) -> UploadState:
        """See `BlobStore.finish_upload`."""
        return self._held.finish_upload(upload_id)

    def list_blobs(self) -> Iterator[StoredBlob]:
        """See `BlobStore.list_blobs`."""
        return self._held.list_blobs()

    def delete_blobs(self, digests: Sequence[str]) -> None:
        """See `BlobStore.delete_blobs`. What is deleted comes again when it is read."""
        self._held.delete_blobs(digests)

    def drop_idle_uploads(self, idle_s: float) -> int:
        """See `BlobStore.drop_idle_uploads`."""
        return self._held.drop_idle_uploads(idle_s)

    def _held_or_fetched(self, digest: str, begin: Callable[[], T]) -> T | _Arriving:
        """What `begin` makes of a blob that is held, which is in use for as long as that lives; or its fetch."""
        done = _nothing if self._room is None else self._room.use(digest)
        try:
            found = self._fetch(digest) or begin()
        except BaseException:
            done()
            raise
        if isinstance(found, _Arriving):
            done()
        elif self._room is not None:
            # Not when it is closed: not everybody closes it.
            weakref.finalize(found, done).atexit = False
        return found

    def _given(
        self, chunks: Iterator[bytes], digest: str, offset: int, limit: int, *, unverified: bool
    ) -> Iterator[bytes]:
        """The same chunks. If another process of this mirror had the blob go before the first, it is brought again."""
        try:
            first = next(chunks, b"")
        except NotFoundError:
            yield from self.read(digest, offset, limit, unverified=unverified)
        else:
            yield first
            yield from chunks

    def _fetch(self, digest: str) -> _Arriving | None:
        """The fetch of a blob, begun unless one is under way, and its file; None for a blob that is held."""
        if not self._held.missing([digest]):
            return None
        size = self._size_of(digest)
        with self._lock:
            fetch = self._running.get(digest)
            if fetch is not None and not fetch.failed:
                return _Arriving(fetch, fetch.open())
            # The one that was under way may have ended since.
            if not self._held.missing([digest]):
                return None
            if size is None:
                raise NotFoundError(f"no blob {digest}", reason="BLOB_NOT_FOUND", metadata={"digest": digest})
            fetch = Fetch(digest, size, self._scratch / uuid.uuid4().hex, self._stall_s)
            self._running[digest] = fetch
            arriving = _Arriving(fetch, fetch.open())
        threading.Thread(target=self._run, args=(fetch,), name="weft-fetch", daemon=True).start()
        return arriving

    def _run(self, fetch: Fetch) -> None:
        def end(spool: Path) -> None:
            def put() -> None:
                self._held.put_file(spool, fetch.digest, fetch.size)

            if self._room is None:
                put()
            else:
                self._room.keep(fetch.digest, fetch.size, put)

        try:
            fetch.run(lambda: self._bring(fetch.digest), end)
        finally:
            with self._lock:
                if self._running.get(fetch.digest) is fetch:
                    del self._running[fetch.digest]
                fetch.discard()


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class _Arriving:
    """A fetch, and its file: open, at its beginning."""

    fetch: Fetch
    file: BinaryIO

    def whole(self, check: Callable[[], None] = _nothing) -> BinaryIO:
        """The file once all of the blob is in it. Closed where it never will be, or `check` has something against it;
        raises as they do."""
        try:
            check()
            self.fetch.wait_stored()
        except BaseException:
            self.file.close()
            raise
        return self.file


def _part(file: BinaryIO, offset: int, length: int) -> Iterator[bytes]:
    with file:
        yield from chunks_of(file, offset, length)
