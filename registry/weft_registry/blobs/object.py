"""Blobs in a bucket under `blobs/sha256/ab/<hex>`: S3, Google Cloud Storage, Azure, or a server that speaks as they do.

Uploads are received on the local disk and hashed there; only bytes that have the digest are put under its key. Every
writer of a key thus writes the same bytes, whoever comes second changes nothing, and the store need know no conditions.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import obstore

from weft_registry import digest as digests
from weft_registry.api import Progress
from weft_registry.blobs.bucket import Bucket
from weft_registry.blobs.reader import ObjectReader
from weft_registry.blobs.staging import ReceivingStore, changed
from weft_registry.blobs.store import BlobLimits, StoredBlob
from weft_registry.blobs.verified import VerifyingStore, no_blob
from weft_registry.digest import CHUNK_BYTES

if TYPE_CHECKING:
    from obstore import ListStream, ObjectMeta

_PREFIX = "blobs/sha256/"
_PART_BYTES = 8 << 20
_MAX_PARTS = 9000
"""S3 takes 10,000."""
_PARTS_AT_ONCE = 2
_PUTS_AT_ONCE = 8
"""Of those in parts: with the two numbers above, what all of them together hold in memory."""
_ASKED_AT_ONCE = 8
_LISTED_AT_ONCE = 1000
_DELETED_AT_ONCE = 1000
_MAX_PROVEN = 4096


class ObjectBlobStore(ReceivingStore, VerifyingStore):
    """Owns one prefix of a bucket, and a local directory for uploads. Implements `weft_registry.blobs.store.BlobStore`.

    Every method may raise `UnavailableError` (`BLOBS_UNREACHABLE`) and `PreconditionError`, as `Bucket.call` does.
    """

    def __init__(self, bucket: Bucket, staging: Path, limits: BlobLimits | None = None) -> None:
        # A bucket is asked for what it has kept, not believed: nothing is remembered of what was sent there.
        super().__init__(staging, limits, None)
        self.where = bucket.where
        self._bucket = bucket
        self._putting = threading.BoundedSemaphore(_PUTS_AT_ONCE)
        self._proven: OrderedDict[str, str] = OrderedDict()
        self._proving = threading.Lock()

    def check_access(self) -> None:
        """See `BlobStore.check_access`."""
        self._bucket.reach()

    def missing(self, digests: Sequence[str]) -> list[str]:
        """See `BlobStore.missing`."""
        keys = [_key(digest) for digest in digests]
        if len(keys) < 2:
            return [digest for digest, key in zip(digests, keys, strict=True) if self._size(key) is None]
        with ThreadPoolExecutor(min(_ASKED_AT_ONCE, len(keys))) as pool:
            sizes = pool.map(self._size, keys)
            return [digest for digest, size in zip(digests, sizes, strict=True) if size is None]

    def size(self, digest: str) -> int:
        """See `BlobStore.size`."""
        held = self._held(digest)
        if held is None:
            raise no_blob(digest)
        return held

    def open(self, digest: str) -> BufferedReader:
        """See `BlobStore.open`."""
        try:
            return BufferedReader(ObjectReader(self._bucket, _key(digest)), CHUNK_BYTES)
        except FileNotFoundError:
            raise no_blob(digest) from None

    def put_file(self, path: Path, digest: str, size_bytes: int, progress: Progress | None = None) -> None:
        """See `BlobStore.put_file`."""
        self._check_size(digest, size_bytes)
        if self._held(digest) is not None:
            if progress:
                progress(size_bytes)
            return
        self._put(path, digest, size_bytes, progress)

    def list_blobs(self) -> Iterator[StoredBlob]:
        """See `BlobStore.list_blobs`."""
        pages = _Pages(self._bucket)
        while page := self._bucket.call(pages.next):
            for meta in page:
                digest = "sha256:" + meta["path"].rpartition("/")[2]
                if digests.is_digest(digest) and meta["path"] == _key(digest):
                    yield StoredBlob(digest, meta["size"], meta["last_modified"])

    def delete_blobs(self, digests: Sequence[str]) -> None:
        """See `BlobStore.delete_blobs`."""
        keys = [_key(digest) for digest in digests]
        for start in range(0, len(keys), _DELETED_AT_ONCE):
            some = keys[start : start + _DELETED_AT_ONCE]
            try:
                self._bucket.call(partial(obstore.delete, self._bucket.store, some))
            except FileNotFoundError:
                # Google and Azure mind what is not there, and stop at it.
                for key in some:
                    self._delete(key)

    def _delete(self, key: str) -> None:
        try:
            self._bucket.call(partial(obstore.delete, self._bucket.store, key))
        except FileNotFoundError:
            return

    def _held(self, digest: str) -> int | None:
        return self._size(_key(digest))

    def _size(self, key: str) -> int | None:
        try:
            return self._bucket.call(lambda: obstore.head(self._bucket.store, key))["size"]
        except FileNotFoundError:
            return None

    def _keep(self, received: Path, digest: str) -> None:
        self._put(received, digest, received.stat().st_size, None)
        received.unlink()

    def _put(self, path: Path, digest: str, size_bytes: int, progress: Progress | None) -> None:
        """Puts a file's bytes under their key, or nothing if they do not have the digest."""
        reported = 0

        def report(done: int) -> None:
            nonlocal reported
            if progress and done > reported:  # A second attempt begins again, and has nothing new to say at first.
                progress(done - reported)
                reported = done

        def whole() -> None:
            with path.open("rb") as source:
                data = source.read(size_bytes + 1)
            _check_promise(path, hashlib.sha256(data).hexdigest(), len(data), digest, size_bytes)
            obstore.put(self._bucket.store, _key(digest), data, use_multipart=False)
            report(size_bytes)

        def in_parts() -> None:
            with path.open("rb") as source:
                obstore.put(
                    self._bucket.store,
                    _key(digest),
                    _promised_chunks(source, path, digest, size_bytes, report),
                    use_multipart=True,
                    chunk_size=max(_PART_BYTES, -(-size_bytes // _MAX_PARTS)),
                    max_concurrency=_PARTS_AT_ONCE,
                )

        if size_bytes <= _PART_BYTES:
            self._bucket.call(whole)
        else:
            with self._putting:
                self._bucket.call(in_parts)

    def _check_for_a_part(self, digest: str, file: BufferedReader) -> None:
        """Once for the same object: who resumes asks for many parts, and each would fetch the whole again."""
        raw = file.raw
        assert isinstance(raw, ObjectReader)
        with self._proving:
            if raw.etag is not None and self._proven.get(digest) == raw.etag:
                return
        self._check(digest, file)
        if raw.etag is not None:
            with self._proving:
                self._proven[digest] = raw.etag
                while len(self._proven) > _MAX_PROVEN:
                    self._proven.popitem(last=False)

    def _repair(self) -> str:
        return f"restore it from a backup, or remove the object from {self.where} and push it again"


class _Pages:
    """A listing in the order of the keys, which goes on where it broke."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._last: str | None = None
        self._stream: ListStream[Sequence[ObjectMeta]] | None = None

    def next(self) -> list[ObjectMeta]:
        """Some objects more; none at the end. Safe to repeat when it failed."""
        stream, self._stream = self._stream, None
        if stream is None:
            stream = obstore.list(self._bucket.store, prefix=_PREFIX, offset=self._last, chunk_size=_LISTED_AT_ONCE)
        page = next(stream, None)
        if not page:
            return []
        self._stream, self._last = stream, page[-1]["path"]
        return list(page)


def _promised_chunks(source: BinaryIO, path: Path, digest: str, size_bytes: int, report: Progress) -> Iterator[bytes]:
    """A file's bytes. What is wrong with them is raised before the end, which breaks off the upload that reads them."""
    sha256, size = hashlib.sha256(), 0
    while chunk := source.read(CHUNK_BYTES):
        sha256.update(chunk)
        size += len(chunk)
        if size >= size_bytes:
            rest = len(source.read(1))
            _check_promise(path, sha256.hexdigest(), size + rest, digest, size_bytes)
        yield chunk
        report(size)
    _check_promise(path, sha256.hexdigest(), size, digest, size_bytes)


def _check_promise(path: Path, found: str, found_bytes: int, digest: str, size_bytes: int) -> None:
    if ("sha256:" + found, found_bytes) != (digest, size_bytes):
        raise changed(path, "sha256:" + found, found_bytes, digest, size_bytes)


def _key(digest: str) -> str:
    hexadecimal = digests.check(digest).removeprefix("sha256:")
    return f"{_PREFIX}{hexadecimal[:2]}/{hexadecimal}"
