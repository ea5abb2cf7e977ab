"""Which adapters are in memory: pulled, verified and bound on first use, leased by requests, evicted when idle.

An adapter is known by its digest alone. A reference is resolved once per request; the digest travels on. Concurrent
first requests share one load, and a load never touches the step thread.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from weft_registry.api import RegistryApi, Version
from weft_registry.errors import ExhaustedError, NotFoundError, PreconditionError
from weft_registry.reference import Reference
from weft_registry.transfer import pull
from weft_server.engine import AdapterHandle, Engine, MergeOutcome

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Entry:
    """One adapter, loading or loaded. Only the event loop touches it."""

    version: Version
    reference: str
    loading: asyncio.Task[AdapterHandle]
    size_bytes: int
    """What it takes in memory; what its files say until it is bound."""
    leases: int = 0
    served: int = 0
    last_used: float = field(default_factory=time.monotonic)

    @property
    def loaded(self) -> bool:
        return self.loading.done() and not self.loading.cancelled() and self.loading.exception() is None


@dataclass(frozen=True)
class Resident:
    """One adapter in memory, for a report."""

    reference: str
    digest: str
    kind: str
    size_bytes: int
    leases: int
    merged: bool
    served: int
    idle_s: float


class Lease:
    """The right to use one adapter; taken once per request and released once."""

    def __init__(self, entry: _Entry) -> None:
        self._entry: _Entry | None = entry
        self.handle = entry.loading.result()
        self.digest = entry.version.digest

    def release(self) -> None:
        """Gives it back. A second call does nothing."""
        if self._entry is not None:
            self._entry.leases -= 1
            self._entry.last_used = time.monotonic()
            self._entry = None


class Residency:
    """Owns the adapters in memory, under one byte limit. Lives in one event loop."""

    def __init__(self, engine: Engine, registry: RegistryApi, pulled: Path, limit_bytes: int) -> None:
        self._engine = engine
        self._registry = registry
        self._pulled = pulled
        self._limit_bytes = limit_bytes
        self._entries: dict[str, _Entry] = {}
        self._switching = asyncio.Lock()

    @property
    def limit_bytes(self) -> int:
        """The most that idle and leased adapters may take together."""
        return self._limit_bytes

    @property
    def resident_bytes(self) -> int:
        """What they take now."""
        return sum(entry.size_bytes for entry in self._entries.values())

    async def lease(self, reference: str) -> Lease:
        """The adapter that `reference` names now, in memory until the lease is released.

        Raises `NotFoundError`, `PreconditionError` for another base, `UnsupportedError` for a kind the engine lacks,
        `CorruptionError` for bytes that are not what was published, `ExhaustedError` when nothing idle can make room.
        """
        version = await self._resolve(reference)
        entry = self._entries.get(version.digest)
        if entry is None or (entry.loading.done() and not entry.loaded):
            self._make_room(version.size_bytes, version)
            loading = asyncio.create_task(self._load(version))
            entry = _Entry(version, reference, loading, version.size_bytes)
            self._entries[version.digest] = entry
            loading.add_done_callback(lambda _: self._settle(entry))
        # Counted before the wait, so that nothing evicts the adapter between its load and its use.
        entry.leases += 1
        try:
            await asyncio.shield(entry.loading)
        except BaseException:
            entry.leases -= 1
            raise
        entry.served += 1
        entry.last_used = time.monotonic()
        return Lease(entry)

    def resident(self) -> list[Resident]:
        """What is in memory, most recently used first."""
        now = time.monotonic()
        entries = sorted((e for e in self._entries.values() if e.loaded), key=lambda e: e.last_used, reverse=True)
        return [self._report(entry, now) for entry in entries]

    async def load(self, reference: str) -> Resident:
        """Brings an adapter into memory before its first request. Raises as `lease`."""
        lease = await self.lease(reference)
        entry = self._entries[lease.digest]
        entry.served -= 1
        lease.release()
        return self._report(entry, time.monotonic())

    async def unload(self, reference: str) -> int:
        """Frees an adapter; answers its bytes. Raises `NotFoundError`, or `PreconditionError` while it is in use."""
        entry = await self._find(reference)
        digest = entry.version.digest
        if self._is_merged(entry):
            raise PreconditionError(f"{reference} ({digest}) is merged: unmerge it first", reason="MERGED")
        if entry.leases:
            raise PreconditionError(
                f"{reference} ({digest}) is used by {entry.leases} running requests: wait for them, or cancel them",
                reason="IN_USE",
                metadata={"leases": str(entry.leases)},
            )
        self._evict(entry)
        return entry.size_bytes

    async def merge(self, reference: str) -> tuple[str, MergeOutcome]:
        """Merges an adapter into the base's weights; it stays in memory while it is. Answers its digest.

        Raises as `lease` and `Engine.merge`.
        """
        async with self._switching:
            lease = await self.lease(reference)
            try:
                return lease.digest, await asyncio.to_thread(self._engine.merge, lease.handle)
            finally:
                lease.release()

    async def unmerge(self) -> tuple[str, float]:
        """Drops the merged weights. Answers whose they were, and the seconds of the swap. Raises as `Engine`."""
        async with self._switching:
            merged = self._engine.merged
            switch_s = await asyncio.to_thread(self._engine.unmerge)
            return merged.digest if merged else "", switch_s

    async def close(self) -> None:
        """Waits for loads under way; their adapters are dropped with the engine."""
        await asyncio.gather(*(entry.loading for entry in self._entries.values()), return_exceptions=True)

    async def _resolve(self, reference: str) -> Version:
        parsed = Reference.parse(reference)
        known = self._entries.get(parsed.digest) if parsed.digest and parsed.label is None else None
        if known is not None and known.version.adapter == parsed.adapter:
            # A digest names the same bytes for ever: no need to ask.
            return known.version
        return await asyncio.to_thread(self._registry.resolve, reference)

    async def _find(self, reference: str) -> _Entry:
        version = await self._resolve(reference)
        entry = self._entries.get(version.digest)
        if entry is None or not entry.loaded:
            raise NotFoundError(
                f"{reference} ({version.digest}) is not in memory: see `weft ps`", reason="NOT_RESIDENT"
            )
        return entry

    async def _load(self, version: Version) -> AdapterHandle:
        directory = self._pulled / version.digest.removeprefix("sha256:")
        return await asyncio.to_thread(self._load_blocking, version, directory)

    def _load_blocking(self, version: Version, directory: Path) -> AdapterHandle:
        # Pulling verifies every file by its digest, those that are already there included.
        try:
            pull(self._registry, version, directory)
        except PreconditionError as error:
            if error.reason != "DESTINATION_EXISTS":
                raise
            # The directory is this server's own and is named by the digest: what it holds was changed on the disk.
            _log.warning("%s: %s; fetching it again", version.adapter, error)
            shutil.rmtree(directory)
            pull(self._registry, version, directory)
        return self._engine.bind(directory, version.manifest, version.digest)

    def _settle(self, entry: _Entry) -> None:
        """After a load: the true size of what was bound, or no entry at all."""
        if entry.loaded:
            entry.size_bytes = entry.loading.result().size_bytes
        elif self._entries.get(entry.version.digest) is entry:
            del self._entries[entry.version.digest]

    def _make_room(self, wanted_bytes: int, version: Version) -> None:
        idle = sorted(
            (e for e in self._entries.values() if e.loaded and not e.leases and not self._is_merged(e)),
            key=lambda e: e.last_used,
        )
        while self.resident_bytes + wanted_bytes > self._limit_bytes and idle:
            self._evict(idle.pop(0))
        if self.resident_bytes + wanted_bytes > self._limit_bytes:
            raise ExhaustedError(
                f"adapter {version.adapter} ({version.digest}) takes {wanted_bytes} bytes; {self.resident_bytes} of "
                f"the {self._limit_bytes} for adapters are in use by running requests: come back later, or raise "
                "--adapter-memory",
                reason="ADAPTER_MEMORY",
                metadata={"needed_bytes": str(wanted_bytes), "limit_bytes": str(self._limit_bytes)},
                retry_after_s=1.0,
            )

    def _evict(self, entry: _Entry) -> None:
        del self._entries[entry.version.digest]
        self._engine.release(entry.loading.result())

    def _is_merged(self, entry: _Entry) -> bool:
        merged = self._engine.merged
        return merged is not None and merged.digest == entry.version.digest

    def _report(self, entry: _Entry, now: float) -> Resident:
        return Resident(
            reference=entry.reference,
            digest=entry.version.digest,
            kind=entry.version.manifest.kind,
            size_bytes=entry.size_bytes,
            leases=entry.leases,
            merged=self._is_merged(entry),
            served=entry.served,
            idle_s=0.0 if entry.leases else now - entry.last_used,
        )
