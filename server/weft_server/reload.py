"""Hot reload: when an alias moves, its new version comes into memory first, and only then do requests go there.

Requests that run finish on the version they began with; requests between the move and the end of the load still get
the old one. Nobody waits for a cold load, and nobody fails. A version that cannot be loaded never replaces one that
can.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

from weft.v1 import registry_pb2 as pb
from weft_registry.api import AliasMove
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import (
    DeadlineError,
    ExhaustedError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
)
from weft_registry.serve.service import RegistryServicer
from weft_server.alias_stream import AliasStream
from weft_server.residency import Residency
from weft_server.resolution import Followed, Resolved, Resolver

_log = logging.getLogger(__name__)
_LONGEST_RETRY_S = 300.0
_SELDOM = 12
"""After so many intervals a reference is asked for even where every move of an alias is told."""
_SILENT_IN_A_ROW = 2
"""After so many references a registry counts as one that cannot be reached: one may be about the reference alone, and
each may cost a timeout."""
_GONE = (NotFoundError, PreconditionError, InvalidInputError)
"""What a registry answers when it knows that a reference names nothing that may be served."""
_NO_ANSWER = (UnavailableError, DeadlineError)


class Reloader:
    """Looks after the followed references. Lives in one event loop."""

    def __init__(self, resolver: Resolver, residency: Residency, interval_s: float) -> None:
        self._resolver = resolver
        self._residency = residency
        self._interval_s = interval_s
        self._poked = asyncio.Event()

    def poke(self) -> None:
        """Something was published or moved: look now."""
        self._poked.set()

    async def run(self) -> None:
        """Follows the registry's word of moved aliases, and looks every `interval_s` at what it says nothing of (at
        everything where there is no word), until it is cancelled; returns at once if that is 0."""
        if self._interval_s <= 0:
            return
        stream = AliasStream(self._resolver.registry, self._moved, self._lost, self._interval_s)
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._interval_s):
                        await self._poked.wait()
                self._poked.clear()
                await self.check(told=stream.lives)
        finally:
            stream.close()

    async def check(self, *, told: bool = False) -> None:
        """Asks the registry once for each followed reference; what moved is brought in beside what follows. Where every
        move is `told`, only for those of which that is not enough to know what they name.

        One after the other, since hundreds at once would take Python's lock from the step thread. Once the registry
        has not answered for several in a row, it is not asked for the others: they are the first to be asked next time.
        """
        unanswered: list[Exception] = []
        for followed in sorted(self._resolver.followed(), key=lambda each: each.asked_s):
            if told and not self._is_due(followed):
                continue
            if len(unanswered) == _SILENT_IN_A_ROW:
                self._remember_unknown(followed, unanswered[-1])
            elif followed.moving is None:
                error = await self._check(followed)
                unanswered = [] if error is None else [*unanswered, error]

    async def settled(self) -> None:
        """Returns once nothing is being brought in."""
        moving = [followed.moving for followed in self._resolver.followed() if followed.moving is not None]
        await asyncio.gather(*moving)

    async def close(self) -> None:
        """Gives up what is being brought in."""
        for followed in self._resolver.followed():
            if followed.moving is not None:
                followed.moving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.settled()

    def _moved(self, move: AliasMove) -> None:
        """The registry says that an alias moved."""
        for followed in self._resolver.followed():
            if (followed.parsed.adapter, followed.parsed.label) == (move.adapter, move.alias):
                followed.told, followed.stale = move.digest, True
                self.poke()

    def _lost(self) -> None:
        """What the registry said may not be all."""
        for followed in self._resolver.followed():
            followed.told, followed.stale = "", True
        self.poke()

    def _is_due(self, followed: Followed) -> bool:
        return (
            followed.stale
            or not followed.looked
            or not followed.by_alias
            # No move tells that a part was yanked.
            or bool(followed.resolved.made_of)
            or bool(followed.problem)
            or time.monotonic() - followed.asked_s >= _SELDOM * self._interval_s
        )

    async def _check(self, followed: Followed) -> Exception | None:
        """Asks for one that is not being brought in. Returns why the registry gave no answer, if it gave none."""
        followed.asked_s = time.monotonic()
        # Before asking: what moves meanwhile is looked at again.
        followed.stale = False
        try:
            found = await self._resolver.ask_again(followed)
        except _GONE as error:
            # The next request hears the reason from the registry itself.
            _log.warning("%s names nothing any more: %s", followed.reference, error)
            self._resolver.forget(followed)
            return None
        except Exception as error:  # noqa: BLE001 - nothing that a registry does may end the watch
            self._remember_unknown(followed, error)
            return error if isinstance(error, _NO_ANSWER) else None
        followed.looked = True
        if found.digest == followed.resolved.digest:
            followed.problem, followed.failed, followed.failures = "", "", 0
        elif found.digest != followed.failed or time.monotonic() >= followed.retry_s:
            followed.moving = asyncio.create_task(self._move(followed, found))
        return None

    async def _move(self, followed: Followed, found: Resolved) -> None:
        before = followed.resolved.digest
        try:
            # One that left memory has no requests to spare a cold load.
            if self._residency.is_resident(before):
                await self._prefetch(followed, found)
            followed.resolved = found
            followed.problem, followed.failed, followed.failures = "", "", 0
            self._residency.recorder.reloaded()
            _log.info("%s moved from %s to %s", followed.reference, before, found.digest)
            # It may have moved on meanwhile, which nobody looked at.
            followed.stale = True
            self.poke()
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the new version, the old one goes on
            followed.failures = followed.failures + 1 if followed.failed == found.digest else 1
            followed.failed = found.digest
            delay_s = min(_LONGEST_RETRY_S, self._interval_s * 2**followed.failures)
            followed.retry_s = time.monotonic() + delay_s
            self._remember(followed, f"{followed.reference} moved to {found.digest}, which cannot be loaded: {error}")
        finally:
            followed.moving = None

    async def _prefetch(self, followed: Followed, found: Resolved) -> None:
        before = followed.resolved.digest
        try:
            await self._residency.prefetch(found, followed.reference, instead_of=before)
        except ExhaustedError as error:
            # There is no room for both. Where nobody uses the old one, it can go when the new one is first asked for.
            if error.retry_after_s is None or not self._residency.is_idle(before):
                raise

    def _remember_unknown(self, followed: Followed, error: Exception) -> None:
        self._remember(followed, f"what {followed.reference} names now is not known: {error}")

    def _remember(self, followed: Followed, problem: str) -> None:
        if followed.problem != problem:
            followed.problem = problem
            _log.warning("still serving %s: %s", followed.resolved.digest, problem)


class AnnouncingRegistryServicer(RegistryServicer):
    """The registry's service, which tells the reloader of every change that is made through it."""

    def __init__(self, registry: EmbeddedRegistry, reloader: Reloader) -> None:
        super().__init__(registry)
        self._reloader = reloader

    async def Publish(self, request: pb.PublishRequest, context: Any) -> pb.PublishResponse:
        """See registry.proto."""
        answer = await super().Publish(request, context)
        self._reloader.poke()
        return answer

    async def SetAlias(self, request: pb.SetAliasRequest, context: Any) -> pb.SetAliasResponse:
        """See registry.proto."""
        answer = await super().SetAlias(request, context)
        self._reloader.poke()
        return answer

    async def Yank(self, request: pb.YankRequest, context: Any) -> pb.YankResponse:
        """See registry.proto."""
        answer = await super().Yank(request, context)
        self._reloader.poke()
        return answer
