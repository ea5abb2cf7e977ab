"""When merged weights are in force, and which requests vLLM may have meanwhile.

vLLM has one set of weights for a whole batch. With an adapter merged into it only that adapter's requests are answered
rightly, and they are answered as the base model's would be: no adapter is attached, which is what makes them fast. So
there are two phases:

- plain: the base's own weights; everybody runs, the merged adapter's requests through their own LoRA;
- merged: only requests for the merged adapter.

Whoever asks for something else in the merged phase ends it: new requests wait, those that run finish, the weights are
restored, and all go on. The merged phase begins again with a request for the merged adapter once nobody else has asked
for anything for a while; those that run finish first here too. Keys and values do not outlive a phase.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from weft_registry.errors import WeftError
from weft_server.vllm_engine.lora_gate import LoraGate
from weft_server.vllm_engine.requests import Running

_log = logging.getLogger(__name__)
_QUIET_S = 1.0
"""Without requests for others, before the merged weights come back: a drain at both ends must be worth it."""


class Phases:
    """Owns the queue in front of vLLM, and the phase. Lives in the engine's loop."""

    def __init__(
        self,
        hand_over: Callable[[Running], None],
        put_in_force: Callable[[str | None], Awaitable[None]],
        lora_slots: int | None = None,
    ) -> None:
        """`hand_over` gives a request to vLLM; `put_in_force` merges the weights of a digest, or restores the base's,
        while nothing runs. `lora_slots`: see `LoraGate`."""
        self._gate = LoraGate(lora_slots)
        self._hand_over = hand_over
        self._put_in_force = put_in_force
        self._queue: deque[Running] = deque()
        self._handed: set[Running] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._switching = asyncio.Lock()
        self._paused = False
        self.wanted: str | None = None
        """Whose weights are to be merged while nobody else asks."""
        self.in_force: str | None = None
        """Whose are."""
        self._turning: asyncio.Task[None] | None = None
        self._other_s = float("-inf")
        """When somebody else's request was last seen, by the loop's clock."""

    def add(self, running: Running) -> None:
        """A new request: handed over at once unless the phase is another."""
        self._queue.append(running)
        self._advance()

    def drop(self, running: Running) -> None:
        """A request that ended, wherever it was."""
        if running in self._handed and running.digest != self.wanted:
            self._other_s = asyncio.get_running_loop().time()
        if running in self._handed:
            self._handed.remove(running)
            self._gate.leave(running)
        if running in self._queue:
            self._queue.remove(running)
        if not self._handed:
            self._empty.set()
        self._advance()

    async def want(self, digest: str | None) -> None:
        """Merges `digest` instead of whoever is merged, or nobody, once what runs has finished. Raises what
        `put_in_force` raises, and then nobody is merged."""
        async with self._switching:
            self._paused = True
            try:
                if self.in_force is not None or digest is not None:
                    await self._empty.wait()
                    self.wanted = None
                    await self._turn(digest)
                self.wanted = digest
            finally:
                self._paused = False
                self._advance()

    def _advance(self) -> None:
        while self._queue and not self._paused and self._turning is None:
            if self.in_force is not None and self._queue[0].digest != self.in_force:
                self._begin(None)
            elif self.in_force is None and self._is_quiet():
                self._begin(self.wanted)
            else:
                running = self._gate.next(self._queue)
                if running is None:
                    return
                self._queue.remove(running)
                self._gate.enter(running)
                self._handed.add(running)
                self._empty.clear()
                self._hand_over(running)

    def _is_quiet(self) -> bool:
        """Whether merged weights would serve everybody that is here, and did for a while."""
        if self.wanted is None or any(r.digest != self.wanted for r in (*self._queue, *self._handed)):
            return False
        return asyncio.get_running_loop().time() - self._other_s >= _QUIET_S

    def _begin(self, digest: str | None) -> None:
        self._turning = asyncio.get_running_loop().create_task(self._change(digest))

    async def _change(self, digest: str | None) -> None:
        try:
            async with self._switching:
                await self._empty.wait()
                # A person may have asked for something else meanwhile.
                if digest is None or digest == self.wanted:
                    await self._turn(digest)
        except WeftError as error:
            self.wanted = None
            _log.warning("%s stays unmerged: %s", digest, error)
        finally:
            self._turning = None
            self._advance()

    async def _turn(self, digest: str | None) -> None:
        if digest == self.in_force:
            return
        if self.in_force is not None:
            await self._put_in_force(None)
            self.in_force = None
        if digest is not None:
            await self._put_in_force(digest)
            self.in_force = digest
