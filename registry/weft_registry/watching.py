"""Following aliases in this process's own catalog: what the embedded registry's `watch_aliases` answers with."""

from __future__ import annotations

import threading
import time
from typing import Self

from weft_registry.api import AliasNews
from weft_registry.catalog.alias_feed import AliasCursor, AliasFeed

HEARTBEAT_S = 10.0
"""How often a watch says something where nothing moves."""


class EmbeddedAliasWatch:
    """Follows this process's own catalog. Implements `AliasWatch`; one thread reads it."""

    def __init__(self, feed: AliasFeed, cursor: AliasCursor, heartbeat_s: float = HEARTBEAT_S) -> None:
        self._feed, self._cursor, self._heartbeat_s = feed, cursor, heartbeat_s
        self._wake, self._closed = threading.Event(), False
        self._end = feed.wake(self._wake.set)
        self._ready = [AliasNews(cursor.sequence)]

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> AliasNews:
        """See `AliasWatch.__next__`. Raises what reading the catalog raises; the watch can be read on afterwards."""
        silent_until = time.monotonic() + self._heartbeat_s
        while not self._closed and not self._feed.closed:
            if self._ready:
                return self._ready.pop(0)
            self._wake.clear()
            self._ready = [AliasNews(move.sequence, move) for move in self._cursor.read()]
            if not self._ready:
                if time.monotonic() >= silent_until:
                    return AliasNews(self._cursor.sequence)
                self._wake.wait(self._feed.look_s)
        self._end()
        raise StopIteration

    def close(self) -> None:
        """See `AliasWatch.close`."""
        self._closed = True
        self._end()
        self._wake.set()
