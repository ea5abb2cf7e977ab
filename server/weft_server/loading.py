"""How adapters come into memory: resolved, pulled, verified and bound on first use, or composed of several that were.

Concurrent first requests share one load, and a load touches neither the step thread nor the event loop's: files are
fetched, hashed and bound in threads of the loader's own. Knows nothing of requests, merging and reports.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

from weft_adapters.threads import step_aside
from weft_registry.api import Version
from weft_registry.composition import Part
from weft_registry.errors import WeftError
from weft_registry.parts import resolve_parts
from weft_registry.reference import Reference
from weft_server.adapter_memory import AdapterMemory, Entry
from weft_server.disk_cache import DiskCache
from weft_server.engine import AdapterHandle, Artifact, Engine
from weft_server.quarantine import Quarantine
from weft_server.recorder import ResidencyRecorder
from weft_server.resolution import Resolved, Resolver
from weft_server.signature_gate import SignatureGate
from weft_server.worn import Worn

T = TypeVar("T")
_LOAD_THREADS = 4
COMPOSED = "composed"
"""The kind that reports give to several adapters worn together."""


class Loader:
    """Owns the memory that adapters come into, the pins of their files on disk, and the threads that load. Lives in one
    event loop.

    A version is pinned on disk from the start of its load until the load fails or the version leaves memory.
    """

    def __init__(
        self,
        engine: Engine,
        resolver: Resolver,
        disk: DiskCache,
        limit_bytes: int,
        *,
        quarantine: Quarantine,
        gate: SignatureGate,
        recorder: ResidencyRecorder,
    ) -> None:
        """What is under `quarantine`, or not let through by `gate`, is not brought."""
        self.memory = AdapterMemory(engine, limit_bytes, self._evicted)
        """What is there, or on its way."""
        self._engine = engine
        self._resolver = resolver
        self._disk = disk
        self._quarantine = quarantine
        self._gate = gate
        self._recorder = recorder
        # Of its own: slow downloads must not keep the tokenizer of other requests from its threads.
        self._threads = ThreadPoolExecutor(_LOAD_THREADS, "weft-load", initializer=step_aside)

    async def find(self, parts: Sequence[Part]) -> Worn:
        """What the parts name now. Raises as `Resolver.resolve`, for the first of them that names nothing."""
        found = await asyncio.gather(*(self._resolve(part.reference) for part in parts), return_exceptions=True)
        return Worn(tuple(parts), tuple(_all(found)))

    async def bring(self, worn: Worn) -> Entry:
        """The loaded entry of one adapter, or of several worn together, with one lease taken.

        Raises as `bring_version` for each part, and as `Engine.compose`.
        """
        digest, reference = worn.digest, worn.reference
        if worn.alone:
            return await self.bring_version(worn.versions[0], reference)
        for version, part in zip(worn.versions, worn.parts, strict=True):
            self._quarantine.check(version.digest, part.reference)
        self._quarantine.check(digest, reference)
        entry = self._usable(digest)
        if entry is not None:
            return await self._loaded(entry)
        weighted = zip(worn.versions, worn.parts, strict=True)
        bringing = (self.bring_version(version, part.reference) for version, part in weighted)
        found = await asyncio.gather(*bringing, return_exceptions=True)
        try:
            entries = [(entry, part.weight) for entry, part in zip(_all(found), worn.parts, strict=True)]
            # Another request may have begun it meanwhile.
            return await self._loaded(self._usable(digest) or self._compose(worn, entries))
        finally:
            # The composition stands by itself.
            for part_entry in found:
                if isinstance(part_entry, Entry):
                    part_entry.leases -= 1

    async def bring_version(self, resolved: Resolved, reference: str) -> Entry:
        """The loaded entry of a version, with one lease taken.

        Raises `PreconditionError` for one under quarantine or of another base, `UnsupportedError` for a kind the engine
        lacks, `CorruptionError` for bytes that are not what was published, `ExhaustedError` when nothing idle can make
        room, in memory or on disk.
        """
        self._quarantine.check(resolved.digest, reference)
        entry = self._usable(resolved.digest)
        if entry is None:
            name, size_bytes = str(resolved.version.adapter), resolved.memory_bytes
            self.memory.make_room(name, resolved.digest, size_bytes)
            loading = asyncio.create_task(self._load(resolved.version))
            entry = Entry(resolved.digest, name, resolved.kind, reference, loading, size_bytes, resolved=resolved)
            self._disk.pin(resolved.digest)
            self._add(entry)
        return await self._loaded(entry)

    def drop(self, entry: Entry) -> None:
        """Frees a loaded entry that nobody uses."""
        self.memory.drop(entry)
        self._unpin(entry)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """What blocks, done in a thread of those that load."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def settled(self) -> None:
        """Returns once nothing is loading."""
        await asyncio.gather(*(entry.loading for entry in self.memory), return_exceptions=True)

    def close(self) -> None:
        """Loads nothing more."""
        self._threads.shutdown(wait=False)

    async def _resolve(self, reference: str) -> Resolved:
        parsed = Reference.parse(reference)
        known = self.memory.find(parsed.digest) if parsed.digest and parsed.label is None else None
        if known is not None and known.resolved is not None and known.resolved.version.adapter == parsed.adapter:
            # A digest names the same bytes for ever: no need to ask.
            return known.resolved
        return await self._resolver.resolve(reference)

    def _compose(self, worn: Worn, parts: Sequence[tuple[Entry, float]]) -> Entry:
        """The entry of a composition, being made. Raises `ExhaustedError` where there is no room for it."""
        digest, reference = worn.digest, worn.reference
        # Until it is made; what it takes then is what counts.
        size_bytes = sum(part.size_bytes for part, _ in parts)
        self.memory.make_room(reference, digest, size_bytes)
        handles = [(part.loading.result(), weight) for part, weight in parts]

        def compose() -> AdapterHandle:
            try:
                return self._engine.compose(handles, digest)
            except WeftError as error:
                # An engine knows digests, and people names.
                for version, part in zip(worn.versions, worn.parts, strict=True):
                    error.message = error.message.replace(version.digest, part.reference)
                error.begin(f"{reference}: ")
                raise

        loading = asyncio.create_task(self.in_thread(compose))
        entry = Entry(digest, reference, COMPOSED, reference, loading, size_bytes)
        self._add(entry)
        return entry

    def _usable(self, digest: str) -> Entry | None:
        """The entry of a digest, loading or loaded; None where there is none, or its load has just failed."""
        entry = self.memory.find(digest)
        return None if entry is None or entry.failed else entry

    def _add(self, entry: Entry) -> None:
        self.memory.add(entry)
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
        handle = await self.in_thread(lambda: self._load_blocking(version))
        self._recorder.loaded(time.monotonic() - begin)
        return handle

    def _load_blocking(self, version: Version) -> AdapterHandle:
        registry, manifest = self._resolver.registry, version.manifest
        self._gate.check(registry, version)
        with ExitStack() as held:
            directory = held.enter_context(self._disk.artifact(registry, version))
            parts: list[Artifact] = []
            # Looked up at every load, and never remembered: a part may have been yanked since the last one.
            for part in resolve_parts(registry.resolve, manifest):
                self._gate.check(registry, part)
                path = held.enter_context(self._disk.artifact(registry, part))
                parts.append(Artifact(path, part.manifest, part.digest))
            return self._engine.bind(directory, manifest, version.digest, parts)

    def _settle(self, entry: Entry) -> None:
        if entry.failed:
            self._recorder.load_failed()
            self._unpin(entry)
        self.memory.settle(entry)

    def _evicted(self, entry: Entry) -> None:
        self._unpin(entry)
        self._recorder.evicted()

    def _unpin(self, entry: Entry) -> None:
        if entry.resolved is not None:
            self._disk.unpin(entry.digest)


def _all(found: Iterable[T | BaseException]) -> list[T]:
    """What was found, or the first of the exceptions, raised."""
    kept: list[T] = []
    for one in found:
        if isinstance(one, BaseException):
            raise one
        kept.append(one)
    return kept
