"""Which adapters are in memory: pulled, verified and bound on first use, leased by requests, evicted when idle.

An adapter is known by its digest alone. A reference is resolved once per request; the digest travels on. Concurrent
first requests share one load, and a load touches neither the step thread nor the event loop's: files are fetched and
hashed in threads of residency's own, and bound in the engine's side threads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

from weft_adapters.threads import step_aside
from weft_registry.api import Version
from weft_registry.composition import Part, composition_digest, describe, parse_parts
from weft_registry.errors import NotFoundError, PreconditionError, WeftError
from weft_registry.parts import resolve_parts
from weft_registry.reference import AdapterName, Reference
from weft_server.adapter_memory import AdapterMemory, Entry
from weft_server.disk_cache import DiskCache
from weft_server.engine import AdapterHandle, Artifact, Engine, EngineEvent, FailEvent, MergeOutcome
from weft_server.quarantine import Quarantine
from weft_server.recorder import ResidencyRecorder
from weft_server.residents import Resident, Tier, from_disk, from_quarantine
from weft_server.resolution import Resolved, Resolver
from weft_server.signature_gate import SignatureGate

_log = logging.getLogger(__name__)
T = TypeVar("T")
_LOAD_THREADS = 4
COMPOSED = "composed"
"""The kind that reports give to several adapters worn together."""
NOT_FINITE = "NOT_FINITE"
"""The reason of an engine's `FailEvent` that puts the request's adapter under quarantine."""


class Lease:
    """The right to use one adapter; taken once per request and released once."""

    def __init__(self, residency: Residency, entry: Entry, named: Sequence[Resolved]) -> None:
        """`named`: the version that the entry is, or those that a composition is made of."""
        self._residency = residency
        self._entry: Entry | None = entry
        self.handle = entry.loading.result()
        self.digest = entry.digest
        self.parts = tuple(version.digest for version in named) if entry.resolved is None else ()
        """The digests of the adapters that a composition is made of."""
        self.made_of: frozenset[AdapterName] = frozenset().union(*(version.made_of for version in named))
        """The adapters that a fusion, or one of those worn together, is made of."""

    def release(self) -> None:
        """Gives it back. A second call does nothing."""
        if self._entry is not None:
            self._entry.leases -= 1
            self._entry.last_used = time.monotonic()
            self._entry = None

    def end(self, event: EngineEvent) -> None:
        """Gives it back with the engine's last event for the request: one that stopped being finite puts the adapter
        under quarantine."""
        entry = self._entry
        self.release()
        if entry is not None and isinstance(event, FailEvent) and event.error and event.error.reason == NOT_FINITE:
            self._residency.condemn(entry, event.error.message)


class Residency:
    """Owns the adapters in memory and who is under quarantine. Lives in one event loop."""

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
        self._gate = gate or SignatureGate(())
        self._memory = AdapterMemory(engine, limit_bytes, self._evicted)
        self._quarantine = Quarantine()
        self._switching = asyncio.Lock()
        self._unmerging: set[asyncio.Task[None]] = set()
        # Of its own: slow downloads must not keep the tokenizer of other requests from its threads.
        self._threads = ThreadPoolExecutor(_LOAD_THREADS, "weft-load", initializer=step_aside)

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
        entry, named = await self._bring_parts(parts)
        entry.served += 1
        return Lease(self, entry, named)

    async def made_of(self, reference: str) -> frozenset[AdapterName]:
        """The adapters that those named are made of: the parts of fusions. Raises as `Resolver.resolve`."""
        named = await self._resolve_parts(parse_parts(reference))
        return frozenset().union(*(version.made_of for version in named))

    async def load(self, reference: str) -> Resident:
        """Brings an adapter, or several worn together (`a+b*0.5`), into memory before the first request.

        Raises as `lease_composed`, and `InvalidInputError` for what no request could wear.
        """
        entry, _ = await self._bring_parts(parse_parts(reference))
        entry.leases -= 1
        return self._report(entry, time.monotonic())

    async def prefetch(self, resolved: Resolved, reference: str, *, instead_of: str) -> None:
        """Brings a version into memory without giving up the one with the digest `instead_of`. Raises as `lease`."""
        kept = self._memory.find(instead_of)
        if kept is not None:
            kept.leases += 1
        try:
            (await self._bring(resolved, reference)).leases -= 1
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
        found = await asyncio.get_running_loop().run_in_executor(self._threads, from_disk, self.disk)
        return [resident for resident in found if resident.digest not in self._memory]

    async def unload(self, reference: str) -> int:
        """Frees an adapter, or several worn together, and lifts its quarantine; answers its bytes.

        Raises `NotFoundError` when it is neither in memory nor under quarantine, `PreconditionError` while it is in
        use.
        """
        parts = parse_parts(reference)
        digest = _digest(parts, await self._resolve_parts(parts))
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
        self._memory.drop(entry)
        self._unpin(entry)
        return entry.size_bytes

    async def merge(self, reference: str) -> tuple[str, MergeOutcome]:
        """Merges an adapter, or several worn together, into the base's weights; it stays in memory while it is. Answers
        its digest.

        Raises as `load` and `Engine.merge`.
        """
        parts = parse_parts(reference)
        async with self._switching:
            entry, _ = await self._bring_parts(parts)
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
        loading = [entry.loading for entry in self._memory]
        await asyncio.gather(*loading, *self._unmerging, return_exceptions=True)

    async def close(self) -> None:
        """Waits for loads under way; their adapters are dropped with the engine."""
        await self.settled()
        self._threads.shutdown(wait=False)
        self._resolver.close()

    async def _resolve(self, reference: str) -> Resolved:
        parsed = Reference.parse(reference)
        known = self._memory.find(parsed.digest) if parsed.digest and parsed.label is None else None
        if known is not None and known.resolved is not None and known.resolved.version.adapter == parsed.adapter:
            # A digest names the same bytes for ever: no need to ask.
            return known.resolved
        return await self._resolver.resolve(reference)

    async def _resolve_parts(self, parts: Sequence[Part]) -> list[Resolved]:
        """What each part names now. Raises for the first of them that names nothing."""
        return _all(await asyncio.gather(*(self._resolve(part.reference) for part in parts), return_exceptions=True))

    async def _bring_parts(self, parts: Sequence[Part]) -> tuple[Entry, Sequence[Resolved]]:
        """The loaded entry of one adapter, or of several worn together, with one lease taken; and the versions that
        they are."""
        named = await self._resolve_parts(parts)
        digest, reference = _digest(parts, named), describe(parts)
        if digest == named[0].digest:
            return await self._bring(named[0], reference), named
        for version, part in zip(named, parts, strict=True):
            self._quarantine.check(version.digest, part.reference)
        self._quarantine.check(digest, reference)
        entry = self._usable(digest)
        if entry is not None:
            return await self._loaded(entry), named
        bringing = (self._bring(version, part.reference) for version, part in zip(named, parts, strict=True))
        found = await asyncio.gather(*bringing, return_exceptions=True)
        try:
            worn = [(entry, part.weight) for entry, part in zip(_all(found), parts, strict=True)]
            # Another request may have begun it meanwhile.
            return await self._loaded(self._usable(digest) or self._compose(digest, reference, worn)), named
        finally:
            # The composition stands by itself.
            for part_entry in found:
                if isinstance(part_entry, Entry):
                    part_entry.leases -= 1

    async def _bring(self, resolved: Resolved, reference: str) -> Entry:
        """The loaded entry of a version, with one lease taken."""
        self._quarantine.check(resolved.digest, reference)
        entry = self._usable(resolved.digest)
        if entry is None:
            name, size_bytes = str(resolved.version.adapter), resolved.memory_bytes
            self._memory.make_room(name, resolved.digest, size_bytes)
            loading = asyncio.create_task(self._load(resolved.version))
            entry = Entry(resolved.digest, name, resolved.kind, reference, loading, size_bytes, resolved=resolved)
            self.disk.pin(resolved.digest)
            self._add(entry)
        return await self._loaded(entry)

    def _compose(self, digest: str, reference: str, parts: Sequence[tuple[Entry, float]]) -> Entry:
        """The entry of a composition, being made. Raises `ExhaustedError` where there is no room for it."""
        # Until it is made; what it takes then is what counts.
        size_bytes = sum(part.size_bytes for part, _ in parts)
        self._memory.make_room(reference, digest, size_bytes)
        handles = [(part.loading.result(), weight) for part, weight in parts]

        def compose() -> AdapterHandle:
            try:
                return self._engine.compose(handles, digest)
            except WeftError as error:
                # An engine knows digests, and people names.
                error.message = f"{reference}: {error.message}"
                error.args = (error.message,)
                raise

        loading = asyncio.create_task(self._in_thread(compose))
        entry = Entry(digest, reference, COMPOSED, reference, loading, size_bytes)
        self._add(entry)
        return entry

    def _usable(self, digest: str) -> Entry | None:
        """The entry of a digest, loading or loaded; None where there is none, or its load has just failed."""
        entry = self._memory.find(digest)
        return None if entry is None or entry.failed else entry

    def _add(self, entry: Entry) -> None:
        self._memory.add(entry)
        entry.loading.add_done_callback(lambda _: self._settle(entry))

    async def _loaded(self, entry: Entry) -> Entry:
        """The entry, once it is loaded, with one lease taken."""
        # Counted before the wait, so that nothing evicts the adapter between its load and its use.
        entry.leases += 1
        try:
            await asyncio.shield(entry.loading)
        except BaseException:
            entry.leases -= 1
            raise
        entry.last_used = time.monotonic()
        return entry

    async def _load(self, version: Version) -> AdapterHandle:
        begin = time.monotonic()
        handle = await self._in_thread(lambda: self._load_blocking(version))
        self.recorder.loaded(time.monotonic() - begin)
        return handle

    async def _in_thread(self, work: Callable[[], AdapterHandle]) -> AdapterHandle:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _load_blocking(self, version: Version) -> AdapterHandle:
        registry, manifest = self._resolver.registry, version.manifest
        self._gate.check(registry, version)
        with ExitStack() as held:
            directory = held.enter_context(self.disk.artifact(registry, version))
            parts: list[Artifact] = []
            # Looked up at every load, and never remembered: a part may have been yanked since the last one.
            for part in resolve_parts(registry.resolve, manifest):
                self._gate.check(registry, part)
                path = held.enter_context(self.disk.artifact(registry, part))
                parts.append(Artifact(path, part.manifest, part.digest))
            return self._engine.bind(directory, manifest, version.digest, parts)

    def _settle(self, entry: Entry) -> None:
        if entry.failed:
            self.recorder.load_failed()
            self._unpin(entry)
        self._memory.settle(entry)

    def _evicted(self, entry: Entry) -> None:
        self._unpin(entry)
        self.recorder.evicted()

    def _unpin(self, entry: Entry) -> None:
        if entry.resolved is not None:
            self.disk.unpin(entry.digest)

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


def _digest(parts: Sequence[Part], named: Sequence[Resolved]) -> str:
    """The identity of these versions, worn with these weights."""
    return composition_digest([(version.digest, part.weight) for version, part in zip(named, parts, strict=True)])


def _all(found: Iterable[T | BaseException]) -> list[T]:
    """What was found, or the first of the exceptions, raised."""
    kept: list[T] = []
    for one in found:
        if isinstance(one, BaseException):
            raise one
        kept.append(one)
    return kept
