"""One step after another: schedule, run, sample, emit. Owns everything that the steps change; knows no threads."""

from __future__ import annotations

import logging
import time

import torch

from weft_registry.errors import ExhaustedError, WeftError
from weft_server.engine import EngineEvent, FailEvent, FinishEvent, TokenEvent
from weft_server.stats import EngineStats
from weft_server.torch_engine.assemble import Assembler
from weft_server.torch_engine.blocks import blocks_for
from weft_server.torch_engine.decoders import Decoder
from weft_server.torch_engine.deltas import ActiveAdapters
from weft_server.torch_engine.overlay import Overlay
from weft_server.torch_engine.sampling import Sampled, sample
from weft_server.torch_engine.scheduler import Limits, Part, Scheduler
from weft_server.torch_engine.sequence import Sequence
from weft_server.torch_engine.step_stats import StepStats

_log = logging.getLogger(__name__)


class Stepper:
    """The running batch over one decoder: its scheduler, its cache, its adapters' packs, the overlay in use."""

    def __init__(self, decoder: Decoder, limits: Limits, kv_bytes: int, device: torch.device) -> None:
        self.decoder = decoder
        self._kv_bytes = kv_bytes
        self._store = decoder.new_cache(kv_bytes)
        self.scheduler = Scheduler(self._store, limits)
        self.active = ActiveAdapters()
        self.overlay: Overlay | None = None
        """The merged weights of the next step."""
        self.begun = 0
        """Steps that have begun to compute."""
        self._assembler = Assembler(self.active, device)
        self._stats = StepStats(self.scheduler, self._store.block_bytes)
        self._measured_version = 0

    def check(self, sequence: Sequence) -> None:
        """Raises `ExhaustedError` for a sequence that could outgrow the whole cache. Any thread may ask."""
        needed_blocks = blocks_for(sequence.most_tokens)
        if needed_blocks > self._store.num_blocks:
            needed, limit = needed_blocks * self._store.block_bytes, self._kv_bytes
            raise ExhaustedError(
                f"the request may reach {sequence.most_tokens} tokens, whose keys and values take {needed} bytes; the "
                f"server has {limit} for all requests: ask for fewer new tokens, or raise --kv-memory",
                reason="KV_MEMORY",
                metadata={"needed_bytes": str(needed), "limit_bytes": str(limit)},
            )

    def cancel(self, request_id: str) -> list[EngineEvent]:
        """Frees a request wherever it is; its last event, or nothing if it has ended."""
        if self.scheduler.remove(request_id) is None:
            return []
        self._stats.note(cancelled=1)
        return [FailEvent(request_id, None)]

    def drain(self, error: WeftError) -> list[EngineEvent]:
        """Fails everything that runs or waits."""
        left = self.scheduler.drain()
        self._stats.note(failed=len(left))
        return [FailEvent(sequence.request.request_id, error) for sequence in left]

    def forget(self, digest: str) -> None:
        """Lets go of an adapter that left memory."""
        self.active.forget(digest)
        self._stats.forget(digest)

    def stats(self) -> EngineStats:
        """What the steps have done so far. Any thread may ask."""
        return self._stats.snapshot()

    def step(self) -> list[EngineEvent]:
        """Computes one token of every request that is answering and more of the prompts, and what became of them."""
        parts = self.scheduler.schedule()
        if not parts:
            self._stats.note()
            return []
        self.begun += 1
        begin = time.perf_counter()
        rows = sum(part.count for part in parts)
        prompt_rows = sum(part.count for part in parts if part.count > 1 or not part.sequence.num_generated)
        try:
            batch, parts = self._assembler.assemble(parts, self.overlay)
            sampled = sample(self.decoder.forward(batch, self.active, self.overlay), parts)
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError, MemoryError) as error:
            # Whatever went wrong inside a step, the requests in it must hear of it and the server must go on.
            _log.exception("a step of %d requests failed", len(parts))
            failure = WeftError(f"the engine failed in a step: {error}", reason="STEP_FAILED")
            sampled = []
            events: list[EngineEvent] = [self._fail(part.sequence, failure) for part in parts]
        else:
            events = []
            for part, choice in zip(parts, sampled, strict=True):
                events += self._emit(part, choice)
        if self.active.version != self._measured_version:
            self._measured_version = self.active.version
            self._stats.pack_bytes = self.active.size_bytes
        self._stats.step(
            time.perf_counter() - begin,
            rows=rows,
            prompt_rows=prompt_rows,
            generated=[p.sequence.digest for p, s in zip(parts, sampled, strict=False) if s.token_id is not None],
            finished=sum(isinstance(event, FinishEvent) for event in events),
            failed=sum(isinstance(event, FailEvent) for event in events),
        )
        return events

    def _emit(self, part: Part, choice: Sampled) -> list[EngineEvent]:
        sequence = part.sequence
        if not choice.finite:
            who = f"adapter {sequence.digest}" if sequence.digest else "the base model"
            error = WeftError(
                f"{who} produced numbers that are not finite",
                reason="NOT_FINITE",
                metadata={"adapter_digest": sequence.digest},
            )
            return [self._fail(sequence, error)]
        self.scheduler.computed(part)
        if choice.token_id is None:
            return []
        sequence.token_ids.append(choice.token_id)
        request_id, cached = sequence.request.request_id, sequence.reused_inputs or 0
        events: list[EngineEvent] = [TokenEvent(request_id, choice.token_id, choice.logprobs, cached)]
        reason = sequence.finish_reason()
        if reason is not None:
            self.scheduler.remove(request_id)
            events.append(FinishEvent(request_id, reason, cached))
        return events

    def _fail(self, sequence: Sequence, error: WeftError) -> FailEvent:
        self.scheduler.remove(sequence.request.request_id, poisoned=True)
        return FailEvent(sequence.request.request_id, error)
