"""The requests that an engine holds, each through its life: submitted, in vLLM, answering, ended. No vLLM here."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weft_registry.errors import ExhaustedError, UnavailableError, WeftError
from weft_server.engine import EngineRequest

if TYPE_CHECKING:
    import asyncio


@dataclass(eq=False)
class Running:
    """One request. Only the engine's loop touches it once it is in the table."""

    request: EngineRequest
    task: asyncio.Task[None] | None = None
    """Reads its tokens; None while it waits to be handed to vLLM."""
    answering: bool = False
    """Whether a token of it has come."""
    cancelled: bool = False

    @property
    def digest(self) -> str:
        """Its adapter's, "" for the base model."""
        return self.request.adapter.digest if self.request.adapter else ""


class Requests:
    """Owns the requests, and the limit on those that have not got a token yet. Any thread may call it."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._table: dict[str, Running] = {}
        self._answering = 0
        self._closed: WeftError | None = UnavailableError("the engine is not running")

    def open(self) -> None:
        """From now on requests are taken."""
        with self._lock:
            self._closed = None

    def close(self, why: WeftError) -> None:
        """From now on requests are refused."""
        with self._lock:
            self._closed = why

    @property
    def is_open(self) -> bool:
        """Whether requests are taken."""
        return self._closed is None

    def add(self, request: EngineRequest) -> Running:
        """Takes a request. Raises `ExhaustedError` when as many wait as may, `UnavailableError` once closed."""
        with self._lock:
            if self._closed is not None:
                raise UnavailableError(self._closed.message, reason=self._closed.reason)
            waiting = len(self._table) - self._answering
            # Those that vLLM will start with its next step wait too: it says nothing of them before their first token.
            if waiting >= self._max_waiting:
                raise ExhaustedError(
                    f"{waiting} requests are waiting, the most this server queues: come back later",
                    reason="QUEUE_FULL",
                    metadata={"limit": str(self._max_waiting)},
                    retry_after_s=1.0,
                )
            running = Running(request)
            self._table[request.request_id] = running
            return running

    def find(self, request_id: str) -> Running | None:
        """The request of that id, if it has not ended."""
        return self._table.get(request_id)

    def answers(self, running: Running) -> None:
        """Notes that a request has its first token."""
        with self._lock:
            running.answering = True
            self._answering += 1

    def remove(self, running: Running) -> bool:
        """Notes that a request has ended; False if that was known."""
        with self._lock:
            if self._table.pop(running.request.request_id, None) is None:
                return False
            self._answering -= running.answering
            return True

    def counts(self) -> tuple[int, int, int]:
        """(answering, waiting, adapters that are being worn)."""
        with self._lock:
            worn = {running.digest for running in self._table.values() if running.answering} - {""}
            return self._answering, len(self._table) - self._answering, len(worn)

    def __iter__(self) -> Iterator[Running]:
        with self._lock:
            return iter(list(self._table.values()))

    def __len__(self) -> int:
        return len(self._table)
