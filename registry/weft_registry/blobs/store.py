"""Blobs by digest, and uploads that survive a broken connection or a killed process. Knows nothing of adapters.

This is what the registry needs of a store; `weft_registry.blobs.local` keeps them in a directory, an object store would
be another implementation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from weft_registry.api import Progress


@dataclass(frozen=True)
class BlobLimits:
    """What a store takes."""

    max_blob_bytes: int = 16 << 30
    max_open_uploads: int = 256
    upload_idle_s: float = 24 * 3600.0
    """An upload without a new byte for so long may be dropped to make room."""


@dataclass(frozen=True)
class UploadState:
    """How far an upload is. Its bytes outlive the process that received them."""

    upload_id: str
    committed_bytes: int
    size_bytes: int
    complete: bool
    """The blob is held: nothing to send."""


class VerifiedChunks(Iterator[bytes]):
    """A blob's bytes, hashed while they are read: the last chunk comes only if the whole has the digest.

    A type of its own, so that whoever gets it in the same process need not hash the same bytes again.
    """

    def __init__(self, digest: str, chunks: Iterator[bytes]) -> None:
        self.digest = digest
        self._chunks = chunks

    def __next__(self) -> bytes:
        return next(self._chunks)


class BlobStore(Protocol):
    """Immutable bytes by digest."""

    def missing(self, digests: Sequence[str]) -> list[str]:
        """Those of `digests` that are not held. Raises `InvalidInputError` for a malformed one."""
        ...

    def size(self, digest: str) -> int:
        """A blob's size in bytes. Raises `NotFoundError`."""
        ...

    def read(self, digest: str, offset: int = 0, limit: int = 0) -> Iterator[bytes]:
        """The blob's bytes from `offset`, at most `limit` of them (0: all), in chunks of at most 1 MiB.

        Raises `NotFoundError`, `OffsetError`, and `CorruptionError` before the last chunk of damaged bytes is given.
        """
        ...

    def open(self, digest: str) -> BinaryIO:
        """The blob as a seekable file, its digest NOT checked. Raises `NotFoundError`."""
        ...

    def verify(self, digest: str) -> int:
        """Re-hashes a blob and returns its size. Raises `NotFoundError` or `CorruptionError`."""
        ...

    def put_file(self, path: Path, digest: str, size_bytes: int, progress: Progress | None = None) -> None:
        """Stores a copy of a local file. Raises `CorruptionError` if it does not have the digest and size."""
        ...

    def start_upload(self, digest: str, size_bytes: int) -> UploadState:
        """Opens an upload, or finds the open one. Raises `InvalidInputError`, `ExhaustedError`."""
        ...

    def query_upload(self, upload_id: str) -> UploadState:
        """How far an upload is. Raises `NotFoundError`."""
        ...

    def write_upload(self, upload_id: str, offset: int, chunk: bytes) -> UploadState:
        """Appends. Raises `NotFoundError`, or `OffsetError` if `offset` is not the committed size."""
        ...

    def finish_upload(self, upload_id: str) -> UploadState:
        """Hashes the received bytes and stores the blob. Raises `OffsetError` if bytes are missing, `CorruptionError`
        (and drops the upload) if they have another digest."""
        ...
