"""Events on their way out: those of one turn of the loop leave together, for a hop to another thread costs the same for
one as for fifty."""

from __future__ import annotations

import asyncio

from weft_server.engine import Deliver, EngineEvent


class Outbox:
    """Owns the events that have not left. Lives in one event loop."""

    def __init__(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._events: list[EngineEvent] = []

    def put(self, event: EngineEvent) -> None:
        """Has an event delivered, after those before it."""
        if not self._events:
            # The tasks that vLLM's step woke are all ahead of this in the loop's queue.
            asyncio.get_running_loop().call_soon(self.flush)
        self._events.append(event)

    def flush(self) -> None:
        """Delivers what there is."""
        events, self._events = self._events, []
        if events:
            self._deliver(events)
