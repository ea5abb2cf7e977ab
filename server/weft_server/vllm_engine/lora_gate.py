"""How many different LoRA adapters vLLM is given at once, where fewer slots hold a LoRA than hold a QA-LoRA.

vLLM's scheduler counts adapters and knows one kind of slot: with more LoRA adapters in a step than slots for them its
worker would fail. So those that are too many wait in front of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from weft_server.vllm_engine.requests import Running


class LoraGate:
    """Counts the LoRA adapters that vLLM has requests for. Lives in the engine's loop."""

    def __init__(self, slots: int | None) -> None:
        """`slots` hold a LoRA; None where every slot does, and vLLM counts by itself."""
        self._slots = slots
        self._inside: Counter[str] = Counter()

    def next(self, waiting: Iterable[Running]) -> Running | None:
        """The first that may go in. Who waits for a slot is passed by those that need none, and by nobody else: its
        turn comes when the first adapter inside has no requests left."""
        blocked = False
        for running in waiting:
            if not self._counts(running):
                return running
            if not blocked and (running.digest in self._inside or len(self._inside) < (self._slots or 0)):
                return running
            blocked = True
        return None

    def enter(self, running: Running) -> None:
        """Notes that vLLM has a request."""
        if self._counts(running):
            self._inside[running.digest] += 1

    def leave(self, running: Running) -> None:
        """Notes that it is over."""
        if self._counts(running):
            self._inside[running.digest] -= 1
            if not self._inside[running.digest]:
                del self._inside[running.digest]

    def _counts(self, running: Running) -> bool:
        adapter = running.request.adapter
        return self._slots is not None and adapter is not None and getattr(adapter, "reads_whole", False)
