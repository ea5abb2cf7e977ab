"""Makes a registry of a backup, on either database and in any blob store: blobs first, then rows in one transaction.

Until that transaction commits the registry is what it was; what a killed restore brought is there for the next attempt,
or garbage.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy import Connection

from weft_registry.api import Progress
from weft_registry.blobs.store import BlobStore
from weft_registry.catalog import audit, mirrored, records, upgrade
from weft_registry.catalog import tables as t
from weft_registry.catalog.database import Catalog
from weft_registry.errors import CorruptionError, NotFoundError, PreconditionError
from weft_registry.upkeep import dump, holds
from weft_registry.upkeep.backup import Watch
from weft_registry.upkeep.backup_archive import ArchiveReader
from weft_registry.upkeep.backup_directory import DirectoryReader
from weft_registry.upkeep.dump import Blob, Dump, Row

_ROWS_AT_ONCE, _BYTES_AT_ONCE = 500, 4 << 20
_NOT_EMPTY = (t.adapters, t.tokens, t.quotas, t.protected_aliases)
"""A registry with rows in one of these is somebody's."""


@dataclass(frozen=True)
class RestoreReport:
    """What was restored."""

    blobs: int
    blob_bytes: int
    copied_blobs: int
    """Those that the registry did not hold already, whole."""
    rows: int


class Reader(Protocol):
    """A place that a backup is read from."""

    dump: Dump

    def put(self, blob: Blob, store: BlobStore, progress: Progress) -> None:
        """Stores a blob of the backup; blobs are asked for by digest. Raises `CorruptionError`."""
        ...

    def close(self) -> None:
        """Releases what is open."""
        ...


def restore(
    catalog: Catalog,
    blobs: BlobStore,
    source: Path,
    actor: str,
    *,
    replace: bool = False,
    watch: Watch | None = None,
) -> RestoreReport:
    """Fills the registry from a backup, a directory or a file. With `replace`, everything that its catalog says is
    forgotten first, in the same transaction.

    Raises `PreconditionError` for a registry that is not empty, unless `replace`; `NotFoundError` for a place without
    a backup; `CorruptionError` for a backup that is damaged: then the registry's catalog is what it was.
    """
    with closing(_place(source)) as reader:
        reader.dump.verify()
        with catalog.read() as connection:
            _refuse_if_used(connection, catalog.where, replace)
        with holds.held(catalog) as hold:
            header = reader.dump.header
            report = (watch(header.blob_bytes) if watch else None) or hold.keep

            def progress(done: int) -> None:
                hold.keep()
                report(done)

            copied = sum(_put(blobs, blob, reader, progress) for blob in reader.dump.blobs())
            with catalog.write() as connection:
                _refuse_if_used(connection, catalog.where, replace)
                if replace:
                    _forget(connection, catalog.where)
                rows = _fill(connection, reader.dump)
                detail = {"taken_at": records.from_us(header.taken_at_us).isoformat(), "rows": rows}
                audit.record(connection, actor, "restore", "", source.name, detail)
    return RestoreReport(header.blobs, header.blob_bytes, copied, rows)


def _place(source: Path) -> Reader:
    if not source.exists():
        raise NotFoundError(f"{source}: no such backup", reason="BACKUP_NOT_FOUND")
    return DirectoryReader(source) if source.is_dir() else ArchiveReader(source)


def _refuse_if_used(connection: Connection, where: str, replace: bool) -> None:
    used = [table.name for table in _NOT_EMPTY if connection.execute(sa.select(table).limit(1)).first()]
    if mirrored.is_mirror(connection):
        used.append("an upstream")
    if used and not replace:
        raise PreconditionError(
            f"the registry in {where} is not empty (it has {', '.join(used)}): name another, or say --replace, which "
            "forgets all that it has, the audit log included",
            reason="REGISTRY_NOT_EMPTY",
        )


def _put(blobs: BlobStore, blob: Blob, reader: Reader, progress: Progress) -> bool:
    """Has the store hold the blob, whole; whether it had to be copied."""
    try:
        blobs.verify(blob.digest)
    except NotFoundError:
        pass
    except CorruptionError:
        blobs.delete_blobs([blob.digest])
    else:
        progress(blob.size_bytes)
        return False
    reader.put(blob, blobs, progress)
    return True


def _forget(connection: Connection, where: str) -> None:
    """Makes the tables anew: rows of the audit log cannot be deleted."""
    t.metadata.drop_all(connection)
    connection.execute(sa.text("DROP TABLE alembic_version"))
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("DROP FUNCTION IF EXISTS audit_is_only_added_to()"))
    upgrade.upgrade(connection, where)


def _fill(connection: Connection, source: Dump) -> int:
    rows = 0
    for table, of_table in groupby(source.rows(), key=lambda row: row.table):
        for some in _batches(of_table):
            connection.execute(table.insert(), some)
            rows += len(some)
    if connection.dialect.name == "postgresql":
        for table in dump.TABLES:
            _reset_sequence(connection, table)
    return rows


def _reset_sequence(connection: Connection, table: sa.Table) -> None:
    """The next row gets the next id. SQLite sees to it by itself."""
    column = table.autoincrement_column
    if column is None:
        return
    sequence = connection.execute(sa.select(sa.func.pg_get_serial_sequence(table.name, column.name))).scalar_one()
    if sequence is not None:
        greatest = sa.select(sa.func.coalesce(sa.func.max(column), 0) + 1).scalar_subquery()
        connection.execute(sa.select(sa.func.setval(sequence, greatest, False)))


def _batches(rows: Iterator[Row]) -> Iterator[list[Any]]:
    """The rows in lists that fit in memory: a manifest may have megabytes."""
    some: list[Any] = []
    size = 0
    for row in rows:
        some.append(row.values)
        size += row.line_bytes
        if len(some) >= _ROWS_AT_ONCE or size >= _BYTES_AT_ONCE:
            yield some
            some, size = [], 0
    if some:
        yield some
