"""The calls of RegistryService that are about aliases. Statuses of each: see registry.proto."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from weft.v1 import registry_pb2 as pb
from weft.v1 import registry_pb2_grpc
from weft_registry.api import AliasNews
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import ExhaustedError
from weft_registry.reference import AdapterName
from weft_registry.serve import paging
from weft_registry.watching import HEARTBEAT_S
from weft_registry.wire.alias_messages import alias_message, move_message, news_message

MAX_WATCHES = 256
MAX_WATCH_S = 300.0
"""A watch ends after so long, and its client begins a new one where this one ended: with a token that may have been
revoked meanwhile."""


class AliasCalls(registry_pb2_grpc.RegistryServiceServicer):
    """A part of `weft_registry.serve.service.RegistryServicer`, which says whose calls they are."""

    def __init__(self) -> None:
        self._watches: set[asyncio.Event] = set()
        self._draining = False

    def end_watches(self) -> None:
        """Ends every watch, for a server that stops: their clients go on elsewhere, or when it is back."""
        self._draining = True
        for moved in self._watches:
            moved.set()

    @property
    def _registry(self) -> EmbeddedRegistry:
        """The registry, as whoever makes the call may use it."""
        raise NotImplementedError

    async def SetAlias(self, request: pb.SetAliasRequest, context: Any) -> pb.SetAliasResponse:
        """See registry.proto."""
        alias = await asyncio.to_thread(
            self._registry.set_alias,
            AdapterName.parse(request.adapter),
            request.alias,
            request.target,
            request.expected_etag,
        )
        return pb.SetAliasResponse(alias=alias_message(alias))

    async def DeleteAlias(self, request: pb.DeleteAliasRequest, context: Any) -> pb.DeleteAliasResponse:
        """See registry.proto."""
        digest = await asyncio.to_thread(
            self._registry.delete_alias,
            AdapterName.parse(request.adapter),
            request.alias,
            request.expected_etag,
        )
        return pb.DeleteAliasResponse(version_digest=digest)

    async def RollbackAlias(self, request: pb.RollbackAliasRequest, context: Any) -> pb.RollbackAliasResponse:
        """See registry.proto."""
        alias = await asyncio.to_thread(
            self._registry.rollback_alias,
            AdapterName.parse(request.adapter),
            request.alias,
            request.expected_etag,
            request.steps or 1,
        )
        return pb.RollbackAliasResponse(alias=alias_message(alias))

    async def ListAliasMoves(self, request: pb.ListAliasMovesRequest, context: Any) -> pb.ListAliasMovesResponse:
        """See registry.proto. The page token is the sequence that the next page begins before."""
        moves, more = await asyncio.to_thread(
            self._registry.page_alias_moves,
            AdapterName.parse(request.adapter),
            request.alias,
            paging.row_token(request.page_token),
            paging.page_size(request.page_size),
        )
        return pb.ListAliasMovesResponse(
            moves=[move_message(move) for move in moves],
            next_page_token=str(moves[-1].sequence) if more else "",
        )

    async def WatchAliases(
        self, request: pb.WatchAliasesRequest, context: Any
    ) -> AsyncIterator[pb.WatchAliasesResponse]:
        """See registry.proto. Holds no thread while nothing moves."""
        registry = self._registry
        adapters = [AdapterName.parse(name) for name in request.adapters]
        if len(self._watches) >= MAX_WATCHES:
            raise ExhaustedError(
                f"{MAX_WATCHES} watches are open, which is all that this registry takes: look at the aliases now and "
                "then instead, and try again later",
                reason="TOO_MANY_WATCHES",
                retry_after_s=30.0,
            )
        loop, moved = asyncio.get_running_loop(), asyncio.Event()
        self._watches.add(moved)
        feed = registry.alias_feed
        end = feed.wake(lambda: _tell(loop, moved))
        try:
            cursor = await asyncio.to_thread(registry.alias_cursor, adapters, request.after)
            yield news_message(AliasNews(cursor.sequence))
            until, silent_until = time.monotonic() + MAX_WATCH_S, time.monotonic() + HEARTBEAT_S
            while not feed.closed and not self._draining:
                moved.clear()
                found = await asyncio.to_thread(cursor.read)
                for move in found:
                    yield news_message(AliasNews(move.sequence, move))
                now = time.monotonic()
                if now >= until:
                    return
                if found:
                    silent_until = now + HEARTBEAT_S
                    continue
                if now >= silent_until:
                    # Where the peer is gone, this is what finds out.
                    yield news_message(AliasNews(cursor.sequence))
                    silent_until = now + HEARTBEAT_S
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(feed.look_s):
                        await moved.wait()
        finally:
            end()
            self._watches.discard(moved)


def _tell(loop: asyncio.AbstractEventLoop, moved: asyncio.Event) -> None:
    """From the thread that committed. A loop that is closed has nobody left to tell."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(moved.set)
