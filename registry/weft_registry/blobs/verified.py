"""Reads blobs and hashes what it reads: nobody ends up with a complete wrong file. Knows nothing of where they are."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from io import BufferedReader
from typing import BinaryIO

from weft_registry.digest import CHUNK_BYTES
from weft_registry.errors import CorruptionError, NotFoundError, OffsetError


class VerifyingStore(ABC):
    """The part of a blob store that reads."""

    @abstractmethod
    def size(self, digest: str) -> int:
        """See `BlobStore.size`."""

    @abstractmethod
    def open(self, digest: str) -> BufferedReader:
        """See `BlobStore.open`."""

    @abstractmethod
    def _repair(self) -> str:
        """What to do about a damaged blob."""

    def read(self, digest: str, offset: int = 0, limit: int = 0, *, unverified: bool = False) -> Iterator[bytes]:
        """See `BlobStore.read`."""
        size = self.size(digest)
        check_part(digest, size, offset, limit)
        if unverified or offset or 0 < limit < size:
            return self._read_part(digest, offset, min(limit or size, size - offset), unverified=unverified)
        return self._read_all(digest)

    def verify(self, digest: str) -> int:
        """See `BlobStore.verify`."""
        with self.open(digest) as file:
            self._check(digest, file)
            return file.tell()

    def _check(self, digest: str, file: BufferedReader) -> None:
        """Hashes an open blob to its end. Raises `CorruptionError`."""
        found = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest:
            raise self._corrupt(digest, found)

    def _check_for_a_part(self, digest: str, file: BufferedReader) -> None:
        """A part cannot be checked alone, so the whole is, first."""
        self._check(digest, file)

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
            raise self._corrupt(digest, "sha256:" + sha256.hexdigest())
        if held:
            yield held

    def _read_part(self, digest: str, offset: int, length: int, *, unverified: bool) -> Iterator[bytes]:
        with self.open(digest) as file:
            if not unverified:
                self._check_for_a_part(digest, file)
            yield from chunks_of(file, offset, length)

    def _corrupt(self, digest: str, found: str) -> CorruptionError:
        return CorruptionError(
            f"blob {digest} is corrupt: its bytes have digest {found}; {self._repair()}",
            reason="BLOB_CORRUPT",
            metadata={"digest": digest, "found": found},
        )


def check_part(digest: str, size_bytes: int, offset: int, limit: int) -> None:
    """Raises `OffsetError` for a part that a blob of `size_bytes` cannot have."""
    if not 0 <= offset <= size_bytes or limit < 0:
        raise OffsetError(
            f"blob {digest}: cannot read {limit} bytes from {offset}: it has {size_bytes}",
            metadata={"size_bytes": str(size_bytes)},
        )


def chunks_of(file: BinaryIO, offset: int, length: int) -> Iterator[bytes]:
    """The `length` bytes of a file from `offset`, fewer where it ends before; in chunks of at most 1 MiB."""
    file.seek(offset)
    while length and (chunk := file.read(min(length, CHUNK_BYTES))):
        length -= len(chunk)
        yield chunk


def no_blob(digest: str) -> NotFoundError:
    """No blob of this digest is held."""
    return NotFoundError(f"no blob {digest}", reason="BLOB_NOT_FOUND", metadata={"digest": digest})
