"""The adapters in memory: a table by digest under one byte limit, with leases, least recently used out first.

Knows when an adapter may leave and who has to; not where adapters come from.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from weft_registry.errors import ExhaustedError
from weft_server.engine import AdapterHandle, Engine
from weft_server.resolution import Resolved


@dataclass(eq=False)
class Entry:
    """One adapter, loading or loaded. Only the event loop touches it."""

    digest: str
    name: str
    """Of the adapter, for people."""
    kind: str
    reference: str
    """The reference it was first asked for by."""
    loading: asyncio.Task[AdapterHandle]
    size_bytes: int
    """What it takes in memory; what its manifest says until it is bound."""
    leases: int = 0
    served: int = 0
    last_used: float = field(default_factory=time.monotonic)
    since: float = field(default_factory=time.monotonic)
    """When it was asked to come into memory."""
    resolved: Resolved | None = None
    """The version it is; None for a composition of several, which is no version and lies on no disk."""

    @property
    def loaded(self) -> bool:
        """Whether it is bound."""
        return self.loading.done() and not self.failed

    @property
    def failed(self) -> bool:
        """Whether its load ended without an adapter."""
        return self.loading.done() and (self.loading.cancelled() or self.loading.exception() is not None)


class AdapterMemory:
    """Owns the entries. Lives in one event loop."""

    def __init__(self, engine: Engine, limit_bytes: int, evicted: Callable[[Entry], None]) -> None:
        """`evicted` is called for every adapter that leaves to make room."""
        self.limit_bytes = limit_bytes
        self._engine = engine
        self._evicted = evicted
        self._entries: dict[str, Entry] = {}

    def __contains__(self, digest: object) -> bool:
        return digest in self._entries

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    @property
    def size_bytes(self) -> int:
        """What all entries take."""
        return sum(entry.size_bytes for entry in self._entries.values())

    def find(self, digest: str) -> Entry | None:
        """The entry of a digest: loading or loaded, or one whose load has just failed."""
        return self._entries.get(digest)

    def add(self, entry: Entry) -> None:
        """Adds an entry that room was made for, in place of one whose load failed."""
        self._entries[entry.digest] = entry

    def settle(self, entry: Entry) -> None:
        """After its load: the true size of what was bound, or no entry at all."""
        if entry.loaded:
            entry.size_bytes = entry.loading.result().size_bytes
            self.evict_down_to(self.limit_bytes)
        elif self._entries.get(entry.digest) is entry:
            del self._entries[entry.digest]

    def drop(self, entry: Entry) -> None:
        """Forgets a loaded entry that nobody uses."""
        del self._entries[entry.digest]
        self._engine.release(entry.loading.result())

    def is_merged(self, entry: Entry) -> bool:
        """Whether it is the one that the engine has merged."""
        merged = self._engine.merged
        return merged is not None and merged.digest == entry.digest

    def is_evictable(self, entry: Entry) -> bool:
        """Whether it may leave."""
        return entry.loaded and not entry.leases and not self.is_merged(entry)

    def make_room(self, name: str, digest: str, wanted: int) -> None:
        """Evicts what is idle until an adapter of `wanted` bytes fits. Raises `ExhaustedError`, and then nothing was
        evicted."""
        numbers = {"needed_bytes": str(wanted), "limit_bytes": str(self.limit_bytes)}
        if wanted > self.limit_bytes:
            raise ExhaustedError(
                f"adapter {name} ({digest}) takes {wanted} bytes; the limit for all adapters in "
                f"memory together is {self.limit_bytes}: raise --adapter-memory",
                reason="ADAPTER_MEMORY",
                metadata=numbers,
            )
        busy = sum(entry.size_bytes for entry in self._entries.values() if not self.is_evictable(entry))
        if busy + wanted > self.limit_bytes:
            raise ExhaustedError(
                f"adapter {name} ({digest}) takes {wanted} bytes; {busy} of the "
                f"{self.limit_bytes} for adapters are in use by running requests: come back later, or raise "
                "--adapter-memory",
                reason="ADAPTER_MEMORY",
                metadata=numbers,
                retry_after_s=1.0,
            )
        self.evict_down_to(self.limit_bytes - wanted)

    def evict_down_to(self, most_bytes: int) -> None:
        """Drops the least recently used of those that may leave until the rest takes so many bytes at most."""
        idle = sorted((e for e in self._entries.values() if self.is_evictable(e)), key=lambda e: e.last_used)
        while self.size_bytes > most_bytes and idle:
            entry = idle.pop(0)
            self.drop(entry)
            self._evicted(entry)
