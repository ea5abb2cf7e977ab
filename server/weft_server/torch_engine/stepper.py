"""One step after another: schedule, run, sample, emit. Owns everything that the steps change; knows no threads."""

from __future__ import annotations

import logging

import torch

from weft_registry.errors import WeftError
from weft_server.engine import EngineEvent, FailEvent, FinishEvent, TokenEvent
from weft_server.torch_engine.assemble import assemble
from weft_server.torch_engine.decoder import Decoder
from weft_server.torch_engine.deltas import ActiveAdapters
from weft_server.torch_engine.overlay import Overlay
from weft_server.torch_engine.sampling import Sampled, sample
from weft_server.torch_engine.scheduler import Scheduler
from weft_server.torch_engine.sequence import Sequence

_log = logging.getLogger(__name__)


class Stepper:
    """The running batch over one decoder: its scheduler, its adapters' packs, the overlay in use."""

    def __init__(self, decoder: Decoder, scheduler: Scheduler, device: torch.device) -> None:
        self.decoder = decoder
        self._device = device
        self.scheduler = scheduler
        self.active = ActiveAdapters()
        self.overlay: Overlay | None = None
        """The merged weights of the next step."""

    def cancel(self, request_id: str) -> list[EngineEvent]:
        """Frees a request wherever it is; its last event, or nothing if it has ended."""
        return [] if self.scheduler.remove(request_id) is None else [FailEvent(request_id, None)]

    def drain(self, error: WeftError) -> list[EngineEvent]:
        """Fails everything that runs or waits."""
        return [FailEvent(sequence.request.request_id, error) for sequence in self.scheduler.drain()]

    def step(self) -> list[EngineEvent]:
        """Computes one token of every running request, and what became of them."""
        plan = self.scheduler.schedule()
        if not plan.sequences:
            return []
        try:
            batch, sequences = assemble(plan, self.active, self.overlay, self._device)
            logits_SV = self.decoder.forward(batch, self.active, self.overlay)
            sampled = sample(logits_SV, sequences)
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError, MemoryError) as error:
            # Whatever went wrong inside a step, the requests in it must hear of it and the server must go on.
            _log.exception("a step of %d requests failed", len(plan.sequences))
            failure = WeftError(f"the engine failed in a step: {error}", reason="STEP_FAILED")
            return [self._fail(sequence, failure) for sequence in plan.sequences]
        events: list[EngineEvent] = []
        for sequence, choice in zip(sequences, sampled, strict=True):
            events += self._emit(sequence, choice)
        return events

    def _emit(self, sequence: Sequence, choice: Sampled) -> list[EngineEvent]:
        sequence.advance()
        if choice.token_id is None:
            who = f"adapter {sequence.adapter.digest}" if sequence.adapter else "the base model"
            return [self._fail(sequence, WeftError(f"{who} produced numbers that are not finite", reason="NOT_FINITE"))]
        sequence.generated.append(choice.token_id)
        request_id = sequence.request.request_id
        events: list[EngineEvent] = [TokenEvent(request_id, choice.token_id, choice.logprobs)]
        reason = sequence.finish_reason()
        if reason is not None:
            self.scheduler.remove(request_id)
            events.append(FinishEvent(request_id, reason))
        return events

    def _fail(self, sequence: Sequence, error: WeftError) -> FailEvent:
        sequence.failed = True
        self.scheduler.remove(sequence.request.request_id)
        return FailEvent(sequence.request.request_id, error)
