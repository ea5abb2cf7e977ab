"""The catalog's connection, whichever database it is in: transactions, and errors in words that callers understand.

Core only: the ORM would double the time that `weft list` takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import ArgumentError, DBAPIError

from weft_registry.catalog import upgrade
from weft_registry.catalog.sqlite import SqliteBackend
from weft_registry.errors import InvalidInputError, UnsupportedError
from weft_registry.passwords import masked

BUSY_TIMEOUT_S = 30.0


class Backend(Protocol):
    """What differs from one database to another. Owns the engine."""

    engine: Engine
    where: str
    """The database, as messages name it: without a password."""

    def preparing(self) -> AbstractContextManager[None]:
        """Holds the database against others that make or upgrade its tables."""
        ...

    def transaction(self, *, writes: bool) -> AbstractContextManager[Connection]:
        """A transaction that sees one moment, or, if it `writes`, beside which nobody else writes."""
        ...

    def translated(self, error: DBAPIError) -> Exception:
        """What a caller should hear of `error`, or `error` itself where it is a bug of ours."""
        ...


class Catalog:
    """Owns one database. Thread-safe; transactions of other processes are waited for, up to `BUSY_TIMEOUT_S`."""

    def __init__(self, database: Path | str, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        """`database`: a file for SQLite, or a URL (`sqlite:////path/catalog.db`, `postgresql://user@host/name`).

        Makes the tables of a new catalog and upgrades those of an older Weft. Raises `InvalidInputError` for a URL that
        is none, `UnsupportedError` for another database or a driver that is not installed, `PreconditionError` for
        the tables of a newer Weft and for what cannot be opened.
        """
        self._backend = _backend(database, busy_timeout_s)
        self.on_commit: Callable[[], None] = _nothing
        """Called after every write of this process, in the thread that wrote. Must return at once."""
        try:
            with self._backend.preparing():
                self._prepare()
        except DBAPIError as error:
            raise self._backend.translated(error) from error

    @property
    def where(self) -> str:
        """The database, as messages name it."""
        return self._backend.where

    @property
    def dialect(self) -> str:
        """ "sqlite" or "postgresql"."""
        return self._backend.engine.dialect.name

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
        self.on_commit()

    def close(self) -> None:
        """Closes the connections."""
        self._backend.engine.dispose()

    @contextmanager
    def _transaction(self, *, writes: bool) -> Iterator[Connection]:
        try:
            with self._backend.transaction(writes=writes) as connection:
                yield connection
        except DBAPIError as error:
            raise self._backend.translated(error) from error

    def _prepare(self) -> None:
        with self.read() as connection:
            current = upgrade.is_current(connection, self.where)
        if not current:
            with self.write() as connection:
                upgrade.upgrade(connection, self.where)


def _nothing() -> None:
    pass


def _backend(database: Path | str, busy_timeout_s: float) -> Backend:
    if isinstance(database, Path):
        return SqliteBackend(database, busy_timeout_s)
    try:
        url = sa.make_url(database)
    except ArgumentError:
        raise InvalidInputError(
            f"database: {masked(database)} is no URL: say sqlite:////path/catalog.db or postgresql://user@host/name"
        ) from None
    if url.get_backend_name() == "sqlite":
        if not url.database or url.database == ":memory:":
            raise InvalidInputError("database: a registry in memory would lose everything: name a file")
        return SqliteBackend(Path(url.database), busy_timeout_s)
    if url.get_backend_name() in ("postgresql", "postgres"):
        try:
            from weft_registry.catalog.postgres import PostgresBackend

            return PostgresBackend(url, busy_timeout_s)
        except ModuleNotFoundError:
            raise UnsupportedError(
                "PostgreSQL needs a driver that is not installed: pip install 'weft[registry]'", reason="NOT_INSTALLED"
            ) from None
    raise UnsupportedError(
        f"database: {url.get_backend_name()}: this registry keeps its catalog in SQLite or PostgreSQL"
    )
