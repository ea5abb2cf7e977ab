"""A catalog in one SQLite file, opened so that several processes may write and a kill -9 loses nothing committed.

WAL, `synchronous=FULL`, and writers that take the write lock when they begin (`BEGIN IMMEDIATE`), so that what a
transaction has read is still true when it writes.
"""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError

from weft_registry.errors import CorruptionError, ExhaustedError, PreconditionError, UnavailableError

_WRITES = "weft_writes"


class SqliteBackend:
    """Implements `weft_registry.catalog.database.Backend`."""

    def __init__(self, path: Path, busy_timeout_s: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self.where = str(path)
        self.engine = sa.create_engine(
            sa.URL.create("sqlite", database=str(path)),
            connect_args={"timeout": busy_timeout_s, "check_same_thread": False},
            pool_size=0,  # A connection for every thread that asks: SQLite itself makes writers take turns.
        )
        event.listen(self.engine, "connect", _on_connect)
        event.listen(self.engine, "begin", _on_begin)

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Holds the catalog against others that prepare it: switching to WAL does not wait for those who do the same,
        so they take turns."""
        with self._path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                with closing(self.engine.raw_connection()) as connection:
                    connection.cursor().execute("PRAGMA journal_mode=WAL")
            except sqlite3.DatabaseError as error:
                raise self._said(str(error)) or error from error
            yield

    @contextmanager
    def transaction(self, *, writes: bool) -> Iterator[Connection]:
        """See `Backend.transaction`."""
        with self.engine.connect().execution_options(**{_WRITES: writes}) as connection, connection.begin():
            yield connection

    def translated(self, error: DBAPIError) -> Exception:
        """See `Backend.translated`."""
        return self._said(str(error.orig)) or error

    def _said(self, said: str) -> Exception | None:
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
        return None


def _on_connect(raw: Any, _record: Any) -> None:
    # The driver would begin transactions by itself, deferred; `_on_begin` decides instead.
    raw.isolation_level = None
    cursor = raw.cursor()
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _on_begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
