"""Takes a backup of a registry that is in use: the catalog at one moment, then every blob that it needs.

Blobs never change, so they may be copied after the catalog's moment; a hold keeps collection away until they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from weft_registry.api import Progress
from weft_registry.blobs.store import BlobStore
from weft_registry.catalog.database import Catalog
from weft_registry.errors import CorruptionError, NotFoundError
from weft_registry.upkeep import backup_archive, backup_directory, dump, holds
from weft_registry.upkeep.dump import Blob, Dump
from weft_registry.upkeep.holds import Hold

Watch = Callable[[int], Progress | None]
"""Told the number of bytes that are about to be done; answers with what to call as they are."""


@dataclass(frozen=True)
class BackupReport:
    """What a backup holds."""

    blobs: int
    blob_bytes: int
    copied_blobs: int
    """Those that no earlier backup in the same place had brought."""
    copied_bytes: int


class Writer(Protocol):
    """A place that a backup is written to."""

    catalog: Path
    """Where the catalog's dump is to be written."""

    def begin(self) -> None:
        """The dump is written, and blobs may come."""
        ...

    def holds(self, blob: Blob) -> bool:
        """Whether this blob is there already."""
        ...

    def add(self, blob: Blob, chunks: Iterable[bytes]) -> None:
        """Adds a blob; blobs come by digest."""
        ...

    def finish(self) -> None:
        """Everything is there."""
        ...


def backup(catalog: Catalog, blobs: BlobStore, to: Path, watch: Watch | None = None) -> BackupReport:
    """Writes a backup into a directory, or into a new file whose name ends in ".tar".

    Raises `PreconditionError` for a place that holds something else, `CorruptionError` if a blob is damaged or missing:
    then there is no new backup, and an earlier one in the same directory stays.
    """
    with holds.held(catalog) as hold, _place(to) as writer:
        with catalog.read() as connection:
            header = dump.write(connection, writer.catalog)
        writer.begin()
        report = (watch(header.blob_bytes) if watch else None) or hold.keep
        copied_blobs, copied_bytes = 0, 0
        for blob in Dump(writer.catalog).blobs():
            if writer.holds(blob):
                hold.keep()
                report(blob.size_bytes)
                continue
            writer.add(blob, _read(blobs, blob, hold, report))
            copied_blobs, copied_bytes = copied_blobs + 1, copied_bytes + blob.size_bytes
        writer.finish()
    return BackupReport(header.blobs, header.blob_bytes, copied_blobs, copied_bytes)


def _place(to: Path) -> AbstractContextManager[Writer]:
    return backup_archive.writing(to) if to.suffix == backup_archive.SUFFIX else backup_directory.writing(to)


def _read(blobs: BlobStore, blob: Blob, hold: Hold, report: Progress) -> Iterator[bytes]:
    """The blob's bytes, hashed by the store; the last chunk comes only if they are right."""
    size = 0
    try:
        for chunk in blobs.read(blob.digest):
            size += len(chunk)
            yield chunk
            hold.keep()
            report(len(chunk))
    except (CorruptionError, NotFoundError) as error:
        raise CorruptionError(
            f"there is no backup of this registry as it is: {error.message}. `weft registry check` names the versions",
            reason=error.reason,
            metadata=error.metadata,
        ) from error
    if size != blob.size_bytes:
        raise CorruptionError(
            f"blob {blob.digest} has {size} bytes, and the catalog says {blob.size_bytes}: `weft registry check` names "
            "the versions"
        )
