"""Blobs by digest, and uploads that survive a broken connection or a killed process. Knows nothing of adapters.

This is what the registry needs of a store. `weft_registry.blobs.local` keeps them in a directory,
`weft_registry.blobs.object` in a bucket.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
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


@dataclass(frozen=True)
class StoredBlob:
    """A blob that is held, whether or not any version has it."""

    digest: str
    size_bytes: int
    stored_at: datetime
    """When it was put there, or put there again; UTC."""


def upload_id_of(digest: str, size_bytes: int, owner: str = "") -> str:
    """The id of the upload of these bytes: everybody who sends them goes on with the same one, or each owner with its
    own."""
    return f"{digest.removeprefix('sha256:')}-{size_bytes}" + (f"-{owner}" if owner else "")


class BlobStore(Protocol):
    """Immutable bytes by digest."""

    where: str
    """The directory or the bucket, as messages name it."""

    def check_access(self) -> None:
        """Asks whether they can be reached. Raises `PreconditionError` that says what to set, or `UnavailableError`."""
        ...

    def missing(self, digests: Sequence[str]) -> list[str]:
        """Those of `digests` that are not held. Raises `InvalidInputError` for a malformed one."""
        ...

    def size(self, digest: str) -> int:
        """A blob's size in bytes. Raises `NotFoundError`."""
        ...

    def read(self, digest: str, offset: int = 0, limit: int = 0, *, unverified: bool = False) -> Iterator[bytes]:
        """The blob's bytes from `offset`, at most `limit` of them (0: all), in chunks of at most 1 MiB.

        Raises `NotFoundError`, `OffsetError`, and `CorruptionError` before the last chunk of damaged bytes is given,
        unless whoever asks hashes them itself: `unverified`.
        """
        ...

    def open(self, digest: str) -> BinaryIO:
        """The blob as a seekable file, its digest NOT checked. Raises `NotFoundError`."""
        ...

    def verify(self, digest: str) -> int:
        """Re-hashes a blob and returns its size. Raises `NotFoundError` or `CorruptionError`."""
        ...

    def knows_sound(self, digest: str, tensors: Sequence[str]) -> bool:
        """Whether this blob was seen, as it arrived here, to be weights with these tensors, by their digests in file
        order, and all of them numbers. False says nothing: then they have to be looked at."""
        ...

    def put_file(self, path: Path, digest: str, size_bytes: int, progress: Progress | None = None) -> None:
        """Stores a copy of a local file. Raises `CorruptionError` if it does not have the digest and size."""
        ...

    def start_upload(self, digest: str, size_bytes: int, owner: str = "") -> UploadState:
        """Opens an upload, or finds the open one. Raises `InvalidInputError`, `ExhaustedError`.

        `owner` (nothing, or at most 12 hexadecimal digits) has uploads of its own: it finds no others, and it is not
        told that the blob is held, but has to send it. Its upload ids end in "-OWNER".
        """
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

    def list_blobs(self) -> Iterator[StoredBlob]:
        """Every blob that is held, in no order, one by one: there may be millions. What is put or deleted meanwhile may
        be among them or not."""
        ...

    def delete_blobs(self, digests: Sequence[str]) -> None:
        """Deletes these blobs; those that are not held are deleted already. Raises `InvalidInputError` for a malformed
        digest, before anything is deleted."""
        ...

    def drop_idle_uploads(self, idle_s: float) -> int:
        """Drops the uploads without a new byte for `idle_s` seconds, and what killed processes left; returns how many
        uploads. Those that are being written to stay."""
        ...
