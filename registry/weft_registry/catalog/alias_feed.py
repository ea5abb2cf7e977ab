"""Moves of aliases as they happen, in this process or in another one on the same catalog.

The history is a table that only grows, so following it is reading on: a reader loses nothing and sees nothing twice.
Whoever commits in this process wakes the readers up at once; what others commit is found by looking, at an interval,
and however many follow, one of them looks for all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence

from weft_registry.api import AliasMove
from weft_registry.catalog import alias_history
from weft_registry.catalog.database import Catalog
from weft_registry.errors import InvalidInputError, OffsetError
from weft_registry.reference import AdapterName

LOOK_S = 0.5
"""How often the catalog is looked at for what other processes did."""
MAX_ADAPTERS = 256
_AT_ONCE = 200


class AliasFeed:
    """How far the history has come. Thread-safe; one for each open catalog."""

    def __init__(self, catalog: Catalog, look_s: float = LOOK_S) -> None:
        self.catalog = catalog
        self.look_s = look_s
        self.closed = False
        self._lock = threading.Lock()
        self._newest, self._looked_s, self._stale = alias_history.NOTHING_YET, float("-inf"), True
        self._waiting: dict[object, Callable[[], None]] = {}
        catalog.on_commit = self._committed

    def newest(self) -> int:
        """The sequence of the last move: as it is now for moves of this process, as it was within `look_s` for moves of
        others."""
        with self._lock:
            if self._stale or time.monotonic() >= self._looked_s + self.look_s:
                # Before looking: what is committed meanwhile is looked for again.
                self._stale = False
                try:
                    with self.catalog.read() as connection:
                        self._newest = alias_history.newest(connection)
                except BaseException:
                    self._stale = True
                    raise
                self._looked_s = time.monotonic()
            return self._newest

    def wake(self, waiting: Callable[[], None]) -> Callable[[], None]:
        """Has `waiting` called after every commit of this process, in the thread that committed; it must return at
        once. Returns what ends that."""
        key = object()
        self._waiting[key] = waiting

        def end() -> None:
            self._waiting.pop(key, None)

        return end

    def close(self) -> None:
        """Ends every watch."""
        self.closed = True
        self._committed()

    def _committed(self) -> None:
        self._stale = True
        for waiting in list(self._waiting.values()):
            waiting()


class AliasCursor:
    """One reader's place in the history. Not thread-safe; blocks for as long as a query takes."""

    def __init__(
        self, feed: AliasFeed, readable: Collection[str] | None, adapters: Sequence[AdapterName], after: int
    ) -> None:
        """Begins after the sequence `after`; 0 is from now on, `NOTHING_YET` from the beginning.

        Raises `InvalidInputError` for too many adapters or another negative sequence, and `OffsetError` for a sequence
        that this registry has not come to.
        """
        if len(adapters) > MAX_ADAPTERS:
            raise InvalidInputError(f"adapters: {len(adapters)}; at most {MAX_ADAPTERS}, or none for all")
        if after < alias_history.NOTHING_YET:
            raise InvalidInputError(f"after: {after}; a sequence, 0 for from now on, or -1 for from the beginning")
        self._feed, self._readable, self._adapters = feed, readable, tuple(adapters)
        with feed.catalog.read() as connection:
            self._read = alias_history.newest(connection)
            newest = alias_history.newest(connection, readable)
        if after > max(newest, 0):
            raise OffsetError(
                f"after: {after}, but this registry's moves end at {newest}: it is another one, or was restored from a "
                "backup; look at every alias again, and follow from now on",
                reason="NO_SUCH_SEQUENCE",
                metadata={"newest": str(newest)},
            )
        self.sequence = after or newest
        """Everything up to here was read."""
        if after:
            self._read = after

    def read(self) -> list[AliasMove]:
        """The next moves, oldest first; none if nothing moved."""
        newest = self._feed.newest()
        if newest <= self._read:
            return []
        with self._feed.catalog.read() as connection:
            found = alias_history.moves_after(connection, self._read, self._readable, self._adapters, _AT_ONCE)
        if found:
            self.sequence = found[-1].sequence
        self._read = self.sequence if len(found) == _AT_ONCE else max(newest, self.sequence)
        return found
