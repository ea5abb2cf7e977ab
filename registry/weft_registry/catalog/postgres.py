"""A catalog in a PostgreSQL database, for several registries at once.

Writers take one advisory lock when they begin, as they do on SQLite: what a transaction has read is still true when it
writes, and none ever has to be tried again because of another. A registry writes small rows at the pace of people and
pipelines, so that lock is not what limits it. Readers see one moment (REPEATABLE READ), and wait for nobody.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DatabaseError, InterfaceError, OperationalError

from weft_registry.errors import CorruptionError, ExhaustedError, PreconditionError, UnavailableError

_WRITERS = 0x77656674  # "weft"
_PREPARERS = _WRITERS + 1
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 1.0


class PostgresBackend:
    """Implements `weft_registry.catalog.database.Backend`. Waits for a server that restarts, up to the busy timeout."""

    def __init__(self, url: sa.URL, busy_timeout_s: float) -> None:
        self._timeout_s = busy_timeout_s
        self.where = url.render_as_string(hide_password=True)
        milliseconds = max(1, round(1e3 * busy_timeout_s))
        self.engine = sa.create_engine(
            url.set(drivername="postgresql+psycopg"),
            # A connection that the server closed meanwhile is replaced before it is used.
            pool_pre_ping=True,
            pool_size=8,
            max_overflow=24,
            pool_timeout=busy_timeout_s,
            connect_args={
                "connect_timeout": max(2, round(busy_timeout_s)),
                "options": f"-c lock_timeout={milliseconds} -c idle_in_transaction_session_timeout=600000",
                "application_name": "weft-registry",
            },
        )
        self._readers: Engine = self.engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Holds the catalog against others that prepare it."""
        with self._connected(self.engine) as connection, connection.begin():
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_PREPARERS)))
            yield

    @contextmanager
    def transaction(self, *, writes: bool) -> Iterator[Connection]:
        """See `Backend.transaction`."""
        with self._connected(self.engine if writes else self._readers) as connection, connection.begin():
            if writes:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_WRITERS)))
            yield connection

    def translated(self, error: DatabaseError) -> Exception:
        """See `Backend.translated`."""
        said = " ".join(str(error.orig).split())
        state = getattr(error.orig, "sqlstate", None) or ""
        if state == "55P03":  # lock_not_available
            return UnavailableError(
                f"the catalog {self.where} cannot be used now ({said}): others write to it; try again",
                reason="CATALOG_BUSY",
                retry_after_s=1.0,
            )
        if state.startswith("53"):  # insufficient_resources: disk full, out of memory, too many connections
            return ExhaustedError(f"the catalog {self.where} has run out of something ({said})", reason="CATALOG_FULL")
        if state.startswith("XX"):  # internal_error: data_corrupted, index_corrupted
            return CorruptionError(f"the catalog {self.where} is damaged ({said})", reason="CATALOG_DAMAGED")
        if state in ("42501", "25006"):  # insufficient_privilege, read_only_sql_transaction
            return PreconditionError(
                f"the catalog {self.where} cannot be written to ({said}): check the role's rights",
                reason="CATALOG_NOT_WRITABLE",
            )
        if state in ("28P01", "28000", "3D000") or "authentication failed" in said or "does not exist" in said:
            return PreconditionError(
                f"the catalog {self.where} cannot be opened ({said}): check the role, its password and the database",
                reason="CATALOG_NOT_OPEN",
            )
        if isinstance(error, OperationalError | InterfaceError):
            return UnavailableError(
                f"no answer from the catalog {self.where} ({said}): is PostgreSQL running? Nothing half done is kept; "
                "try again",
                reason="CATALOG_UNREACHABLE",
                retry_after_s=2.0,
            )
        return error

    @contextmanager
    def _connected(self, engine: Engine) -> Iterator[Connection]:
        """A connection. Nothing was begun yet, so a server that is restarting can be waited for."""
        deadline, wait_s = time.monotonic() + self._timeout_s, _FIRST_WAIT_S
        while True:
            try:
                connection = engine.connect()
                break
            except OperationalError as error:
                late = time.monotonic() + wait_s > deadline
                if late or not isinstance(self.translated(error), UnavailableError):
                    raise
                time.sleep(wait_s * random.uniform(0.5, 1.0))
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
        with connection:
            yield connection
