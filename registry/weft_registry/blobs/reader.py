"""An object of a bucket as a file: read as one stream, which goes on where it broke; a seek begins another."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import obstore

from weft_registry.blobs.bucket import Bucket

if TYPE_CHECKING:
    from obstore import BytesStream, GetOptions, GetResult

_CHUNK_BYTES = 1 << 20


class ObjectReader(io.RawIOBase):
    """Owns one request at a time. Not thread-safe, as files are not."""

    def __init__(self, bucket: Bucket, key: str) -> None:
        """Raises `FileNotFoundError`, and as `Bucket.call`."""
        super().__init__()
        self._bucket, self._key = bucket, key
        self._at = 0
        self._chunk, self._chunk_at = b"", 0
        # What comes after the chunk.
        self._stream: BytesStream | None = None
        first: GetResult = bucket.call(lambda: obstore.get(bucket.store, key))
        self.size_bytes: int = first.meta["size"]
        self.etag: str | None = first.meta["e_tag"]
        """What the store calls these very bytes; the rest of the object is read only while it is still called so."""
        if self.size_bytes:
            self._stream = first.stream(_CHUNK_BYTES)

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The position, in bytes."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As files do it. Sends nothing: the next read does, if it is elsewhere."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size_bytes}[whence]
        if start + offset < 0:
            raise ValueError(f"seek to {start + offset}")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Some bytes; 0 at the end. Raises as `Bucket.call`; `UnavailableError` where the object was deleted since."""
        if self._at >= self.size_bytes:
            return 0
        begin = self._at - self._chunk_at
        if not 0 <= begin < len(self._chunk):
            if begin != len(self._chunk):
                self._stream = None
            try:
                self._chunk = self._bucket.call(self._next)[: self.size_bytes - self._at]
            except FileNotFoundError as error:
                raise self._bucket.unreachable(f"{self._key} was deleted while it was read") from error
            self._chunk_at, begin = self._at, 0
        part = memoryview(self._chunk)[begin : begin + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)

    def close(self) -> None:
        """Ends the request."""
        self._stream = None
        super().close()

    def _next(self) -> bytes:
        # Taken out while it is used: one that broke is not asked again, a new one begins where it broke.
        stream, self._stream = self._stream, None
        if stream is None:
            options: GetOptions = {"range": {"offset": self._at}}
            if self.etag is not None:
                options["if_match"] = self.etag
            stream = obstore.get(self._bucket.store, self._key, options=options).stream(_CHUNK_BYTES)
        chunk = next(stream, b"")
        if not chunk:
            raise self._bucket.unreachable(f"{self._key} ended after {self._at} of {self.size_bytes} bytes")
        self._stream = stream
        return chunk
