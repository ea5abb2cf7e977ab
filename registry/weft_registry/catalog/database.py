"""The catalog's connection: SQLite, opened so that several processes may write and a kill -9 loses nothing committed.

WAL, `synchronous=FULL`, and writers that take the write lock when they begin (`BEGIN IMMEDIATE`), so that what a
transaction has read is still true when it writes. Core only: the ORM would double the time that `weft list` takes.
"""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DatabaseError

from weft_registry.catalog import tables
from weft_registry.errors import CorruptionError, ExhaustedError, PreconditionError, UnavailableError

BUSY_TIMEOUT_S = 30.0
_WRITES = "weft_writes"


class Catalog:
    """Owns one database. Thread-safe; transactions of other processes are waited for, up to `BUSY_TIMEOUT_S`."""

    def __init__(self, path: Path, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._engine = _engine(path, busy_timeout_s)
        # Switching a new database to WAL does not wait for others who do the same: so they take turns.
        with path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                with closing(self._engine.raw_connection()) as connection:
                    connection.cursor().execute("PRAGMA journal_mode=WAL")
            except sqlite3.DatabaseError as error:
                raise self._translated(error, error) from error
            self._prepare()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one moment of the catalog. Raises `UnavailableError` when it is locked too long."""
        with self._transaction(writes=False) as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that nobody else writes beside: committed at the end, rolled back by any exception.

        Raises `UnavailableError` when others hold the write lock for longer than the busy timeout.
        """
        with self._transaction(writes=True) as connection:
            yield connection

    def close(self) -> None:
        """Closes the connections."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self, *, writes: bool) -> Iterator[Connection]:
        try:
            with self._engine.connect().execution_options(**{_WRITES: writes}) as connection, connection.begin():
                yield connection
        except DatabaseError as error:
            raise self._translated(error, error.orig) from error

    def _prepare(self) -> None:
        """Creates the tables of a new catalog; refuses one that a newer Weft made."""
        with self.read() as connection:
            version = self._version(connection)
        if version is None:
            with self.write() as connection:
                version = tables.SCHEMA_VERSION
                tables.metadata.create_all(connection)
                connection.execute(tables.settings.insert().values(key="schema_version", value=str(version)))
        if version > tables.SCHEMA_VERSION:
            raise PreconditionError(
                f"{self._path} has catalog schema {version}; this Weft knows {tables.SCHEMA_VERSION}: upgrade Weft",
                reason="CATALOG_TOO_NEW",
                metadata={"schema_version": str(version)},
            )

    def _version(self, connection: Connection) -> int | None:
        if not sa.inspect(connection).has_table(tables.settings.name):
            return None
        statement = sa.select(tables.settings.c.value).where(tables.settings.c.key == "schema_version")
        return int(connection.execute(statement).scalar_one())

    def _translated(self, error: Exception, cause: BaseException | None) -> Exception:
        """What a caller should hear of SQLite's `cause`, or `error` itself where it is a bug of ours."""
        said = str(cause)
        if "not a database" in said or "malformed" in said:
            return CorruptionError(
                f"the catalog {self._path} is damaged ({said}): restore it from a backup; the blobs beside it stay",
                reason="CATALOG_DAMAGED",
            )
        if "unable to open" in said or "readonly" in said:
            return PreconditionError(
                f"the catalog {self._path} cannot be opened for writing ({said}): check who owns it",
                reason="CATALOG_NOT_WRITABLE",
            )
        if "locked" in said:
            return UnavailableError(
                f"the catalog {self._path} cannot be used now ({said}): another process holds it; try again",
                reason="CATALOG_BUSY",
                retry_after_s=1.0,
            )
        if "is full" in said:
            return ExhaustedError(f"no space is left for the catalog {self._path}: free some", reason="DISK_FULL")
        return error


def _engine(path: Path, busy_timeout_s: float) -> Engine:
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(path)),
        connect_args={"timeout": busy_timeout_s, "check_same_thread": False},
        pool_size=0,  # A connection for every thread that asks: SQLite itself makes writers take turns.
    )

    @event.listens_for(engine, "connect")
    def _on_connect(raw: Any, _record: Any) -> None:
        # The driver would begin transactions by itself, deferred; `_on_begin` decides instead.
        raw.isolation_level = None
        cursor = raw.cursor()
        for pragma in ("synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
