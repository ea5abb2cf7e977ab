"""Between the engine's step thread and asyncio: each request's events, in a queue of its own.

An engine delivers a step's events all at once, from its own thread; the bridge carries them over in one hop and hands
them out. It also knows when the engine has let go of a request, which is when its lease may be released.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from weft_server.engine import Engine, EngineEvent, EngineRequest, TokenEvent
from weft_server.recorder import CallRecord


@dataclass(frozen=True)
class _Route:
    on_end: Callable[[EngineEvent], None]
    call: CallRecord
    events: asyncio.Queue[EngineEvent] = field(default_factory=asyncio.Queue)


class EngineBridge:
    """Owns the routes of running requests. All methods run in the event loop it was made in."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._loop = asyncio.get_running_loop()
        self._routes: dict[str, _Route] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    def start(self) -> None:
        """Starts the engine."""
        self.engine.start(self._deliver)

    def submit(
        self, request: EngineRequest, on_end: Callable[[EngineEvent], None], call: CallRecord
    ) -> asyncio.Queue[EngineEvent]:
        """Submits a request; `on_end` is called once, with the engine's last event for it. `call` hears of every token.

        Raises what `Engine.submit` raises, and then `on_end` is not called.
        """
        route = _Route(on_end, call)
        self._routes[request.request_id] = route
        try:
            self.engine.submit(request)
        except BaseException:
            del self._routes[request.request_id]
            raise
        self._idle.clear()
        return route.events

    def cancel(self, request_id: str) -> None:
        """Tells the engine that nobody waits for this request; nothing if it has ended."""
        if request_id in self._routes:
            self.engine.cancel(request_id)

    @property
    def running_count(self) -> int:
        """Requests that the engine has not let go of."""
        return len(self._routes)

    async def drained(self) -> None:
        """Returns once no request runs."""
        await self._idle.wait()

    def _deliver(self, events: Sequence[EngineEvent]) -> None:
        # The loop may be gone while the engine reports the last of a shutdown; then nobody waits for it either.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._route, events)

    def _route(self, events: Sequence[EngineEvent]) -> None:
        # Here, and not where the answer is read: a caller who reads slowly is no slow server.
        now = time.monotonic()
        for event in events:
            route = self._routes.get(event.request_id)
            if route is None:
                continue
            route.events.put_nowait(event)
            if isinstance(event, TokenEvent):
                route.call.token(now)
            else:
                del self._routes[event.request_id]
                route.on_end(event)
        if not self._routes:
            self._idle.set()
