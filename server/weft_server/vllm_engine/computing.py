"""The engine's half that lives in vLLM's loop: hands requests to vLLM, passes on their tokens, and ends each once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from weft_registry.errors import InvalidInputError, PreconditionError, UnavailableError, WeftError
from weft_server.engine import Deliver, EngineEvent, FailEvent, FinishEvent, TokenEvent
from weft_server.vllm_engine.adapters import VllmAdapter
from weft_server.vllm_engine.merges import Given
from weft_server.vllm_engine.outbox import Outbox
from weft_server.vllm_engine.phases import Phases
from weft_server.vllm_engine.requests import Requests, Running
from weft_server.vllm_engine.stats import EngineCounts

_log = logging.getLogger(__name__)
_WATCH_S = 0.2
"""Between two looks at whether vLLM's process lives."""


class Computing:
    """Owns the tasks that read vLLM's answers. Everything runs in the loop that it is made in."""

    def __init__(
        self,
        llm: Any,
        requests: Requests,
        counts: EngineCounts,
        deliver: Deliver,
        given: Callable[[str], Given],
        lora_slots: int | None,
    ) -> None:
        """`given`: see `Merges.given`; `lora_slots`: see `LoraGate`."""
        self.phases = Phases(self._hand_over, self._put_in_force, lora_slots)
        self._llm = llm
        self._requests = requests
        self._counts = counts
        self._given = given
        self._outbox = Outbox(deliver)
        self._tasks: set[asyncio.Task[Any]] = set()
        self.background(self._watch())

    def begin(self, running: Running) -> None:
        """A request that was submitted."""
        request_id = running.request.request_id
        if not self._requests.is_open:
            self._finish(running, FailEvent(request_id, UnavailableError("the engine is not running")))
        elif running.cancelled:
            self._finish(running, FailEvent(request_id, None))
        else:
            self.phases.add(running)

    def cancel(self, request_id: str) -> None:
        """Nobody waits for a request; nothing if it has ended."""
        running = self._requests.find(request_id)
        if running is None:
            return
        running.cancelled = True
        if running.task is not None:
            running.task.cancel()
        else:
            self._finish(running, FailEvent(request_id, None))

    async def end(self, why: WeftError) -> None:
        """Fails every request."""
        tasks = []
        for running in self._requests:
            self._finish(running, FailEvent(running.request.request_id, why))
            if running.task is not None:
                running.task.cancel()
                tasks.append(running.task)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Stops watching, and whatever else goes on."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def background(self, work: Coroutine[Any, Any, Any]) -> None:
        """Does something that nobody waits for."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _hand_over(self, running: Running) -> None:
        task = asyncio.get_running_loop().create_task(self._read(running))
        running.task = task
        # A task that is cancelled before its first step runs nothing of its own.
        task.add_done_callback(lambda _: self._finish(running, FailEvent(running.request.request_id, None)))

    async def _read(self, running: Running) -> None:
        """Has vLLM compute a request, and passes on what comes."""
        from weft_server.vllm_engine import conversion

        request = running.request
        adapter = request.adapter
        assert adapter is None or isinstance(adapter, VllmAdapter), "a handle of another engine"
        parts = conversion.parts(request, adapter, merged=self.phases.in_force is not None)
        stream = self._llm.generate(parts.prompt, parts.params, request.request_id, lora_request=parts.lora)
        try:
            async for output in stream:
                metrics = output.metrics
                if metrics is not None and metrics.is_corrupted:
                    self._finish(running, FailEvent(request.request_id, conversion.not_finite(request)))
                    return
                for event in conversion.events(request, output, virtual=parts.virtual):
                    self._pass_on(running, event, metrics)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever vLLM says of one request must reach its caller
            self._finish(running, FailEvent(request.request_id, self._failure(error)))
        finally:
            # Not left to the collector of garbage: closing is what takes the request out of vLLM's batch.
            await stream.aclose()

    def _pass_on(self, running: Running, event: EngineEvent, metrics: Any) -> None:
        if not isinstance(event, TokenEvent):
            self._finish(running, event)
            return
        if not running.answering:
            self._requests.answers(running)
            waited_s = 0.0 if metrics is None else max(0.0, metrics.scheduled_ts - metrics.queued_ts)
            self._counts.joined(waited_s, event.cached_tokens)
        self._counts.tokens(running.digest, 1)
        self._outbox.put(event)

    def _finish(self, running: Running, event: FinishEvent | FailEvent) -> None:
        """The one last event of a request."""
        if not self._requests.remove(running):
            return
        ended = "finished" if isinstance(event, FinishEvent) else "failed" if event.error else "cancelled"
        self._counts.ended(ended)
        self._outbox.put(event)
        self.phases.drop(running)

    def _failure(self, error: Exception) -> WeftError:
        if self._llm.errored:
            return UnavailableError(f"the engine stopped: {error}", reason="ENGINE_DIED")
        cause = error.__cause__ or error
        if isinstance(cause, ValueError):
            return InvalidInputError(f"vLLM refuses the request: {cause}", reason="VLLM_REFUSED")
        _log.error("vLLM failed a request", exc_info=error)
        return UnavailableError(f"vLLM failed the request: {cause}", reason="ENGINE_FAILED")

    async def _put_in_force(self, digest: str | None) -> None:
        """Merges, or restores, while nothing runs; keys and values of before are forgotten."""
        method, given = ("weft_unmerge", ()) if digest is None else ("weft_merge", self._given(digest))
        try:
            await self._llm.collective_rpc(method, args=given)
            await self._llm.reset_prefix_cache()
        except Exception as error:  # vLLM answers for its process with bare Exceptions
            if self._llm.errored:
                raise UnavailableError(f"the engine stopped: {error}", reason="ENGINE_DIED") from error
            raise PreconditionError(f"vLLM did not switch its weights: {error}", reason="NOT_SWITCHED") from error

    async def _watch(self) -> None:
        """Ends every request once vLLM's process is gone: nothing may wait for it."""
        while not self._llm.errored:
            await asyncio.sleep(_WATCH_S)
        why = UnavailableError("the engine stopped: vLLM's process is gone", reason="ENGINE_DIED")
        _log.error("vLLM's process is gone")
        self._requests.close(why)
        await self.end(why)
