"""From references to versions. Alias references are remembered, so that a moved alias can be brought in before its
requests go there.

With following on, what an alias reference named last is what its requests get, until `weft_server.reload` has the new
version in memory and says otherwise. References by digest never move and are not followed.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from weft_registry.api import RegistryApi, Version
from weft_registry.parts import resolve_parts
from weft_registry.reference import AdapterName, Reference

MAX_FOLLOWED = 256
MAX_KNOWN = 64
"""Versions whose manifests are kept, for aliases that move back and forth."""
FORGET_S = 600.0
"""A reference that nobody used for so long is not followed any more; its next request asks the registry."""
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Resolved:
    """What a reference named, and what is known of the version before it is pulled."""

    version: Version
    kind: str
    memory_bytes: int
    """What its tensors take once they are bound in the engine's dtype."""
    made_of: frozenset[AdapterName] = frozenset()
    """The adapters that a fusion is made of."""

    @property
    def digest(self) -> str:
        """The version's digest."""
        return self.version.digest


@dataclass(eq=False)
class Followed:
    """One alias reference. Only the event loop touches it."""

    reference: str
    resolved: Resolved
    """What its requests get."""
    parsed: Reference = field(init=False)
    used_s: float = field(default_factory=time.monotonic)
    asked_s: float = field(default_factory=time.monotonic)
    """When the registry was asked for it last."""
    looked: bool = False
    """It was asked since it is followed: what moved between the first answer and that has been seen."""
    told: str = ""
    """The digest that the registry said it moved to, and that nobody has looked at yet."""
    stale: bool = False
    """It moved, or may have: it is asked for at the next look, whatever else is known."""
    moving: asyncio.Task[None] | None = None
    """Bringing in the version that it names now."""
    problem: str = ""
    """Why it does not get the version that it names now."""
    failed: str = ""
    """The digest that could not be brought in."""
    failures: int = 0
    """How often that was tried."""
    retry_s: float = 0.0
    """It is not tried again before."""

    def __post_init__(self) -> None:
        self.parsed = Reference.parse(self.reference)

    @property
    def by_alias(self) -> bool:
        """Whether it is an alias that says what it names; a tag never moves, but may be yanked from under it."""
        return self.parsed.label not in self.resolved.version.tags


class Resolver:
    """Owns the followed references and the threads that ask the registry. Lives in one event loop."""

    def __init__(self, registry: RegistryApi, dtype: str, *, follow: bool) -> None:
        self.registry = registry
        self._item_bytes = _ITEM_BYTES.get(dtype)
        self._follow = follow
        self._followed: OrderedDict[str, Followed] = OrderedDict()
        self._asking: dict[str, asyncio.Task[Resolved]] = {}
        self._known: OrderedDict[tuple[AdapterName, str], Resolved] = OrderedDict()
        self._lock = threading.Lock()  # Of the known ones, which the threads add to.
        # Of its own: a registry that hangs must not keep the tokenizer of other requests from its threads.
        self._threads = ThreadPoolExecutor(8, "weft-resolve")

    async def resolve(self, reference: str) -> Resolved:
        """What requests for `reference` get. Raises what `Reference.parse` and `RegistryApi.resolve` raise; that
        nothing was found is never remembered."""
        followed = self._followed.get(reference)
        if followed is not None:
            followed.used_s = time.monotonic()
            self._followed.move_to_end(reference)
            return followed.resolved
        parsed = Reference.parse(reference)
        if not self._follow or parsed.digest is not None:
            return await self.ask(reference)
        asking = self._asking.get(reference)
        if asking is None:
            asking = self._asking[reference] = asyncio.create_task(self._first(reference))
            # So that an error that no request waits for any more is not reported as lost.
            asking.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(asking)

    async def ask(self, reference: str) -> Resolved:
        """What the registry says that `reference` names now."""
        return await self._in_thread(lambda: self._describe(self.registry.resolve(reference)))

    async def ask_again(self, followed: Followed) -> Resolved:
        """The same for a reference that most probably names what it named before, or what the registry told: costs
        little if it does."""
        told, followed.told = followed.told, ""
        # An alias never points at what is yanked: of a version that is known there is nothing to ask. The parts of a
        # fusion are asked for, since they may be.
        known = self._known.get((followed.parsed.adapter, told))
        if known is not None and not known.made_of:
            return known

        def again() -> Resolved:
            version = self.registry.resolve(followed.reference)
            before = followed.resolved
            if version.digest != before.digest:
                return self._describe(version)
            if before.made_of:
                resolve_parts(self.registry.resolve, version.manifest)
            return before

        return await self._in_thread(again)

    def followed(self) -> list[Followed]:
        """The references to look after; those that nobody used for long are dropped first."""
        oldest = time.monotonic() - FORGET_S
        for followed in [f for f in self._followed.values() if f.used_s < oldest]:
            self.forget(followed)
        return list(self._followed.values())

    def forget(self, followed: Followed) -> None:
        """The next request for this reference asks the registry."""
        if self._followed.get(followed.reference) is followed:
            del self._followed[followed.reference]

    def problem(self, digest: str) -> str:
        """Why an alias that may have moved on is still served by this version; empty if there is none."""
        return next((f.problem for f in self._followed.values() if f.problem and f.resolved.digest == digest), "")

    def close(self) -> None:
        """Asks nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _first(self, reference: str) -> Resolved:
        try:
            resolved = await self.ask(reference)
        finally:
            del self._asking[reference]
        self._followed[reference] = Followed(reference, resolved)
        while len(self._followed) > MAX_FOLLOWED:
            self._followed.popitem(last=False)
        return resolved

    async def _in_thread(self, ask: Callable[[], Resolved]) -> Resolved:
        return await asyncio.get_running_loop().run_in_executor(self._threads, ask)

    def _describe(self, version: Version) -> Resolved:
        # In a thread, too: a manifest of many hundred tensors takes milliseconds, which the event loop does not have.
        manifest = version.manifest
        # What it is made over comes into memory with it; a part that cannot is refused here, before anything is pulled.
        parts = resolve_parts(self.registry.resolve, manifest)
        memory_bytes = sum(self._memory_bytes(one) for one in (version, *parts))
        resolved = Resolved(version, manifest.kind, memory_bytes, frozenset(part.adapter for part in parts))
        self._keep(resolved)
        return resolved

    def _keep(self, resolved: Resolved) -> None:
        with self._lock:
            self._known[resolved.version.adapter, resolved.digest] = resolved
            while len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)

    def _memory_bytes(self, version: Version) -> int:
        if self._item_bytes is None:
            return version.size_bytes
        return self._item_bytes * sum(_product(tensor.shape) for tensor in version.manifest.tensors)


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
