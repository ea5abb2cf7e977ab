"""Who uses the adapters in memory, and what becomes of them: leased by requests, merged, condemned, unloaded, reported.

An adapter is known by its digest alone. A reference is resolved once per request; the digest travels on. Does not know
how an adapter comes into memory: `weft_server.loading` does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from weft_registry.composition import Part, parse_parts
from weft_registry.errors import InvalidInputError, NotFoundError, PreconditionError, WeftError
from weft_server.adapter_memory import Entry
from weft_server.disk_cache import DiskCache
from weft_server.engine import Engine, EngineEvent, FailEvent, MergeOutcome
from weft_server.loading import Loader
from weft_server.quarantine import Quarantine
from weft_server.recorder import ResidencyRecorder
from weft_server.residents import Resident, Tier, from_disk, from_quarantine
from weft_server.resolution import Resolved, Resolver
from weft_server.signature_gate import SignatureGate
from weft_server.worn import Worn

_log = logging.getLogger(__name__)
NOT_FINITE = "NOT_FINITE"
"""The reason of an engine's `FailEvent` that puts a version under quarantine."""


class Lease:
    """The right to use one adapter; taken once per request and released once."""

    def __init__(self, residency: Residency, entry: Entry, worn: Worn) -> None:
        """`worn`: what the request named, and the entry is."""
        self._residency = residency
        self._entry: Entry | None = entry
        self.handle = entry.loading.result()
        self.digest = entry.digest
        self.composed = "" if worn.alone else worn.reference
        """The adapters worn together, with their weights, as the request named them; empty for one as published."""
        self.parts = () if worn.alone else tuple(version.digest for version in worn.versions)
        """The digests of the adapters that a composition is made of."""
        self.made_of = worn.made_of
        """The adapters that a fusion, or one of those worn together, is made of."""

    def release(self) -> None:
        """Gives it back. A second call does nothing."""
        if self._entry is not None:
            self._entry.leases -= 1
            self._entry.last_used = time.monotonic()
            self._entry = None

    def end(self, event: EngineEvent) -> None:
        """Gives it back with the engine's last event for the request: one that stopped being finite puts the adapter
        under quarantine, unless it is a composition, of which the request's weights are a part."""
        entry = self._entry
        self.release()
        if entry is None or self.composed or not isinstance(event, FailEvent) or event.error is None:
            return
        if event.error.reason == NOT_FINITE:
            self._residency.condemn(entry, event.error.message)

    def explain(self, error: WeftError) -> WeftError:
        """The engine's error as it concerns whoever asked: that numbers stopped being finite under weights of his own
        is his to mend."""
        if error.reason != NOT_FINITE or not self.composed:
            return error
        return InvalidInputError(
            f"{self.composed}: worn together with these weights, the adapters produced numbers that are not finite; "
            "give smaller weights, or find the adapter that does so alone",
            reason=NOT_FINITE,
            metadata={"adapters": self.composed[:200], "adapter_digest": self.digest},
        )


class Residency:
    """Owns the loader of the adapters in memory, and who is under quarantine. Lives in one event loop."""

    def __init__(
        self,
        engine: Engine,
        resolver: Resolver,
        disk: DiskCache,
        limit_bytes: int,
        recorder: ResidencyRecorder | None = None,
        gate: SignatureGate | None = None,
    ) -> None:
        """`gate` refuses what is not signed; without one everything passes."""
        self.disk = disk
        """The tier below memory."""
        self.tier = Tier.HOST if engine.info.device.startswith("cpu") else Tier.DEVICE
        """Where bound adapters are."""
        self.recorder = recorder or ResidencyRecorder()
        """What was done so far."""
        self._engine = engine
        self._resolver = resolver
        self._quarantine = Quarantine()
        self._loader = Loader(
            engine,
            resolver,
            disk,
            limit_bytes,
            quarantine=self._quarantine,
            gate=gate or SignatureGate(()),
            recorder=self.recorder,
        )
        self._memory = self._loader.memory
        self._switching = asyncio.Lock()
        self._unmerging: set[asyncio.Task[None]] = set()

    @property
    def limit_bytes(self) -> int:
        """The most that idle and leased adapters may take together."""
        return self._memory.limit_bytes

    @property
    def resident_bytes(self) -> int:
        """What they take now."""
        return self._memory.size_bytes

    @property
    def quarantined_count(self) -> int:
        """Adapters under quarantine."""
        return len(self._quarantine)

    async def lease(self, reference: str) -> Lease:
        """The adapter that `reference` names now, in memory until the lease is released.

        Raises `NotFoundError`, `PreconditionError` for another base or an adapter under quarantine, `UnsupportedError`
        for a kind the engine lacks, `CorruptionError` for bytes that are not what was published, `ExhaustedError` when
        nothing idle can make room, in memory or on disk.
        """
        return await self.lease_composed((Part(reference),))

    async def lease_composed(self, parts: Sequence[Part]) -> Lease:
        """Adapters worn together, as one adapter in memory until the lease is released; made once for each set of
        digests and weights, and evicted like any other.

        Raises as `lease` for each part, and as `Engine.compose`.
        """
        worn = await self._loader.find(parts)
        entry = await self._loader.bring(worn)
        entry.served += 1
        return Lease(self, entry, worn)

    async def find(self, reference: str) -> Worn:
        """What a reference, to one adapter or to several worn together (`a+b*0.5`), names now.

        Raises as `Resolver.resolve`, and `InvalidInputError` for what no request could wear.
        """
        return await self._loader.find(parse_parts(reference))

    async def load(self, reference: str) -> Resident:
        """Brings what `find` answers into memory before the first request. Raises as `find` and `load_found`."""
        return await self.load_found(await self.find(reference))

    async def load_found(self, worn: Worn) -> Resident:
        """The same for what `find` has answered: nothing is resolved again. Raises as `lease_composed`."""
        entry = await self._loader.bring(worn)
        entry.leases -= 1
        return self._report(entry, time.monotonic())

    async def prefetch(self, resolved: Resolved, reference: str, *, instead_of: str) -> None:
        """Brings a version into memory without giving up the one with the digest `instead_of`. Raises as `lease`."""
        kept = self._memory.find(instead_of)
        if kept is not None:
            kept.leases += 1
        try:
            (await self._loader.bring_version(resolved, reference)).leases -= 1
        finally:
            if kept is not None:
                kept.leases -= 1

    def is_idle(self, digest: str) -> bool:
        """Whether an adapter could leave memory now, or is not there."""
        entry = self._memory.find(digest)
        return entry is None or self._memory.is_evictable(entry)

    def is_resident(self, digest: str) -> bool:
        """Whether an adapter is in memory, or on its way there."""
        return digest in self._memory

    def resident(self) -> list[Resident]:
        """What is in memory, most recently used first."""
        now = time.monotonic()
        entries = sorted((e for e in self._memory if e.loaded), key=lambda e: e.last_used, reverse=True)
        return [self._report(entry, now) for entry in entries]

    def absent_quarantined(self) -> list[Resident]:
        """What is under quarantine and has left memory."""
        return [from_quarantine(record) for record in self._quarantine if record.digest not in self._memory]

    async def on_disk(self) -> list[Resident]:
        """What is on disk and not in memory, most recently used first."""
        found = await self._loader.in_thread(lambda: from_disk(self.disk))
        return [resident for resident in found if resident.digest not in self._memory]

    async def unload(self, reference: str) -> int:
        """Frees an adapter, or several worn together, and lifts its quarantine; answers its bytes.

        Raises `NotFoundError` when it is neither in memory nor under quarantine, `PreconditionError` while it is in
        use.
        """
        digest = (await self.find(reference)).digest
        entry = self._memory.find(digest)
        if entry is None or not entry.loaded:
            if self._quarantine.lift(digest):
                return 0
            raise NotFoundError(f"{reference} ({digest}) is not in memory: see `weft ps`", reason="NOT_RESIDENT")
        if self._memory.is_merged(entry):
            raise PreconditionError(f"{reference} ({digest}) is merged: unmerge it first", reason="MERGED")
        if entry.leases:
            raise PreconditionError(
                f"{reference} ({digest}) is used by {entry.leases} running requests: wait for them, or cancel them",
                reason="IN_USE",
                metadata={"leases": str(entry.leases)},
            )
        self._quarantine.lift(digest)
        self._loader.drop(entry)
        return entry.size_bytes

    async def merge(self, reference: str) -> tuple[str, MergeOutcome]:
        """Merges an adapter, or several worn together, into the base's weights; it stays in memory while it is. Answers
        its digest.

        Raises as `load` and `Engine.merge`.
        """
        parts = parse_parts(reference)
        async with self._switching:
            entry = await self._loader.bring(await self._loader.find(parts))
            try:
                outcome = await asyncio.to_thread(self._engine.merge, entry.loading.result())
            finally:
                entry.leases -= 1
            self.recorder.merged(outcome.build_s, outcome.switch_s)
            return entry.digest, outcome

    async def unmerge(self) -> tuple[str, float]:
        """Drops the merged weights. Answers whose they were, and the seconds of the swap. Raises as `Engine`."""
        async with self._switching:
            return await self._unmerge()

    def condemn(self, entry: Entry, why: str) -> None:
        """Puts an adapter under quarantine: its requests are refused from now on, and it is unmerged if it is merged.

        What runs with it already goes on: each of those requests is judged by its own numbers.
        """
        if not self._quarantine.add(entry.digest, entry.reference, entry.kind, why):
            return
        _log.error("%s (%s) is under quarantine: %s", entry.reference, entry.digest, why)
        task = asyncio.create_task(self._unmerge_if(entry.digest))
        self._unmerging.add(task)
        task.add_done_callback(self._unmerging.discard)

    def evict_idle(self) -> None:
        """Frees every adapter that nobody uses. They stay on disk."""
        self._memory.evict_down_to(0)

    async def settled(self) -> None:
        """Returns once nothing is loading, and who is under quarantine is not merged."""
        await asyncio.gather(self._loader.settled(), *self._unmerging, return_exceptions=True)

    async def close(self) -> None:
        """Waits for loads under way; their adapters are dropped with the engine."""
        await self.settled()
        self._loader.close()
        self._resolver.close()

    async def _unmerge(self) -> tuple[str, float]:
        merged = self._engine.merged
        switch_s = await asyncio.to_thread(self._engine.unmerge)
        self.recorder.unmerged(switch_s)
        return merged.digest if merged else "", switch_s

    async def _unmerge_if(self, digest: str) -> None:
        async with self._switching:
            merged = self._engine.merged
            if merged is not None and merged.digest == digest:
                await self._unmerge()

    def _report(self, entry: Entry, now: float) -> Resident:
        record = self._quarantine.find(entry.digest)
        return Resident(
            reference=entry.reference,
            digest=entry.digest,
            kind=entry.kind,
            size_bytes=entry.size_bytes,
            leases=entry.leases,
            merged=self._memory.is_merged(entry),
            hot=entry.digest in self._engine.overlays,
            since=entry.since,
            served=entry.served,
            idle_s=0.0 if entry.leases else now - entry.last_used,
            tier=self.tier,
            quarantined=record.summary if record else "",
            reload_problem=self._resolver.problem(entry.digest),
        )
