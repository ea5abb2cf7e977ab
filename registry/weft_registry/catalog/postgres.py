"""A catalog in a PostgreSQL database, for several registries at once.

Writers take one advisory lock when they begin, as they do on SQLite: what a transaction has read is still true when it
writes, and none ever has to be tried again because of another. A registry writes small rows at the pace of people and
pipelines, so that lock is not what limits it. Readers see one moment (REPEATABLE READ), and wait for nobody.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from weft_registry.catalog.postgres_errors import translated, waited_for
from weft_registry.errors import UnavailableError

_WRITERS = 0x77656674  # "weft"
_PREPARERS = _WRITERS + 1
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 1.0
_CONNECTIONS = 16
"""Of one process. One of them writes, at most; a read takes milliseconds."""


class PostgresBackend:
    """Implements `weft_registry.catalog.database.Backend`. Waits for a server that restarts, up to the busy timeout."""

    def __init__(self, url: sa.URL, busy_timeout_s: float) -> None:
        self._timeout_s = busy_timeout_s
        self.where = url.set(query={}).render_as_string(hide_password=True)
        milliseconds = max(1, round(1e3 * busy_timeout_s))
        self.engine = sa.create_engine(
            url.set(drivername="postgresql+psycopg"),
            # A connection that the server closed meanwhile is replaced before it is used.
            pool_pre_ping=True,
            pool_size=4,
            max_overflow=_CONNECTIONS - 4,
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
        # Who waits for the advisory lock holds a connection: the writers of one process wait here instead, so that they
        # never take all of them and readers go on.
        self._turn = threading.Lock()

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Holds the catalog against others that prepare it."""
        with self._connected(self.engine) as connection, connection.begin():
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_PREPARERS)))
            yield

    @contextmanager
    def transaction(self, *, writes: bool) -> Iterator[Connection]:
        """See `Backend.transaction`."""
        if not writes:
            with self._connected(self._readers) as connection, connection.begin():
                yield connection
            return
        if not self._turn.acquire(timeout=self._timeout_s):
            raise self._busy("others of this process write to it")
        try:
            with self._connected(self.engine) as connection, connection.begin():
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_WRITERS)))
                yield connection
        finally:
            self._turn.release()

    def translated(self, error: DBAPIError) -> Exception:
        """See `Backend.translated`."""
        return translated(error, self.where)

    @contextmanager
    def _connected(self, engine: Engine) -> Iterator[Connection]:
        """A connection. Nothing was begun yet, so a server that is restarting can be waited for."""
        deadline, wait_s = time.monotonic() + self._timeout_s, _FIRST_WAIT_S
        while True:
            try:
                connection = engine.connect()
                break
            except PoolTimeoutError:
                raise self._busy(f"all {_CONNECTIONS} connections of this process are in use") from None
            except (OperationalError, InterfaceError) as error:
                if time.monotonic() + wait_s > deadline or not waited_for(error):
                    raise
                time.sleep(wait_s * random.uniform(0.5, 1.0))
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
        with connection:
            yield connection

    def _busy(self, why: str) -> UnavailableError:
        return UnavailableError(
            f"the catalog {self.where} cannot be used now: {why}; try again",
            reason="CATALOG_BUSY",
            retry_after_s=1.0,
        )
