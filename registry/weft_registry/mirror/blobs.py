"""The blobs of a mirror: those it holds, and those it can bring. Implements `weft_registry.blobs.store.BlobStore`.

A blob that is not held is fetched when it is read, once for all who read it meanwhile; only blobs of versions that the
mirror knows are asked for, so that nobody reads the upstream through it by guessing digests.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from weft_registry.api import Progress
from weft_registry.blobs.store import BlobStore, StoredBlob, UploadState
from weft_registry.errors import NotFoundError
from weft_registry.mirror.fetches import STALL_S, Fetch

_LEFT_S = 3600.0
Bring = Callable[[str], Iterator[bytes]]
"""The upstream's bytes of a digest."""
SizeOf = Callable[[str], int | None]
"""The size of a blob that some version here has; None for others."""


class PullThroughBlobs:
    """Owns the fetches that are under way, and `scratch`, where they arrive. Thread-safe."""

    def __init__(self, held: BlobStore, bring: Bring, size_of: SizeOf, scratch: Path, stall_s: float = STALL_S) -> None:
        self.where = held.where
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
        started = self._fetch(digest)
        if started is None:
            return self._held.read(digest, offset, limit, unverified=unverified)
        fetch, file = started
        if offset or limit:
            file.close()
            fetch.wait_stored()
            return self._held.read(digest, offset, limit, unverified=unverified)
        return fetch.follow(file)

    def open(self, digest: str) -> BinaryIO:
        """See `BlobStore.open`. Waits for a blob that is not here yet."""
        self._hold(digest)
        return self._held.open(digest)

    def verify(self, digest: str) -> int:
        """See `BlobStore.verify`. Brings a blob that is not here yet."""
        self._hold(digest)
        return self._held.verify(digest)

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

    def _hold(self, digest: str) -> None:
        started = self._fetch(digest)
        if started is not None:
            fetch, file = started
            file.close()
            fetch.wait_stored()

    def _fetch(self, digest: str) -> tuple[Fetch, BinaryIO] | None:
        """The fetch of a blob, begun unless one is under way, and its file; None for a blob that is held."""
        if not self._held.missing([digest]):
            return None
        size = self._size_of(digest)
        with self._lock:
            fetch = self._running.get(digest)
            if fetch is not None and not fetch.failed:
                return fetch, fetch.open()
            # The one that was under way may have ended since.
            if not self._held.missing([digest]):
                return None
            if size is None:
                raise NotFoundError(f"no blob {digest}", reason="BLOB_NOT_FOUND", metadata={"digest": digest})
            fetch = Fetch(digest, size, self._scratch / uuid.uuid4().hex, self._stall_s)
            self._running[digest] = fetch
            file = fetch.open()
        threading.Thread(target=self._run, args=(fetch,), name="weft-fetch", daemon=True).start()
        return fetch, file

    def _run(self, fetch: Fetch) -> None:
        def end(spool: Path) -> None:
            self._held.put_file(spool, fetch.digest, fetch.size)

        try:
            fetch.run(lambda: self._bring(fetch.digest), end)
        finally:
            with self._lock:
                if self._running.get(fetch.digest) is fetch:
                    del self._running[fetch.digest]
                fetch.discard()
