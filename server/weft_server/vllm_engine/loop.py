"""An asyncio loop in a thread of its own: where vLLM's front end lives, beside the server's loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


class LoopThread:
    """Owns the loop. Its methods may be called from any other thread."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Runs a coroutine there, and waits for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def call(self, action: Callable[[], _T]) -> _T:
        """Does something there, and waits for it."""

        async def act() -> _T:
            return action()

        return self.run(act())

    def post(self, action: Callable[..., object], *arguments: Any) -> None:
        """Has something small done there, in the order of the calls; nothing once it is closed."""
        try:
            self._loop.call_soon_threadsafe(action, *arguments)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def close(self) -> None:
        """Stops the loop, whatever is left in it."""
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
