"""Holds: while there is one, nothing is collected. A backup takes one, since it reads blobs long after its moment.

A hold is a row of `settings` with an end, so that a backup that was killed keeps nobody from collecting for ever.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection

from weft_registry.catalog import records
from weft_registry.catalog import tables as t
from weft_registry.catalog.database import Catalog
from weft_registry.errors import PreconditionError

PREFIX = "collection_hold/"
HOLD_S = 900.0
"""How long a hold lasts without being renewed."""
_RENEW_S = 60.0


class Hold:
    """One hold, kept by whoever is at work. Not thread-safe."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._key = PREFIX + uuid.uuid4().hex
        self._renewed = 0.0

    def keep(self, _done: int = 0) -> None:
        """Renews the hold when it is time to. Called with every piece of work; usable as a progress callback."""
        if not self._renewed or time.monotonic() - self._renewed > _RENEW_S:
            until = records.now_us() + round(1e6 * HOLD_S)
            with self._catalog.write() as connection:
                connection.execute(t.settings.delete().where(t.settings.c.key == self._key))
                connection.execute(t.settings.insert().values(key=self._key, value=str(until)))
            self._renewed = time.monotonic()

    def end(self) -> None:
        """Lets collections go on."""
        with self._catalog.write() as connection:
            connection.execute(t.settings.delete().where(t.settings.c.key == self._key))


@contextmanager
def held(catalog: Catalog) -> Iterator[Hold]:
    """Nothing is collected as long as the context lasts and `keep` is called now and then."""
    hold = Hold(catalog)
    hold.keep()
    try:
        yield hold
    finally:
        hold.end()


def refuse_if_held(connection: Connection) -> None:
    """Raises `PreconditionError` while there is a hold. The caller's transaction is a write."""
    s = t.settings.c
    now = records.now_us()
    for row in connection.execute(t.settings.select().where(s.key.startswith(PREFIX, autoescape=True))).all():
        if int(row.value) > now:
            raise PreconditionError(
                "a backup or a restore is under way, and needs blobs to stay: collect garbage after it (a hold that "
                f"was left by a killed one ends at {records.from_us(int(row.value)):%Y-%m-%d %H:%M}Z)",
                reason="COLLECTION_HELD",
                metadata={"until_us": row.value},
            )
        connection.execute(t.settings.delete().where(s.key == row.key))
