"""Everything at once for a while: submits, cancels at every stage, adapters, merging, far too little cache."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.engines import Tracer
from benchmarks.subjects import random_adapter
from tests.tiny_models import AddedBase
from weft_adapters.kinds.kind import Adapter
from weft_server.engine import EngineEvent, EngineRequest, FailEvent, FinishEvent, Sampling, TokenEvent
from weft_server.torch_engine.merging import build_overlay
from weft_server.torch_engine.scheduler import Limits
from weft_server.torch_engine.sequence import Sequence
from weft_server.torch_engine.stepper import Stepper

OPERATIONS = 400
BLOCKS = 9


class Soak:
    """One stepper, everything that was asked of it, and everything that it answered."""

    def __init__(self, stepper: Stepper, adapters: list[Adapter[Any] | None], dice: random.Random) -> None:
        self.stepper = stepper
        self.requests: dict[str, tuple[EngineRequest, Adapter[Any] | None]] = {}
        self.events: dict[str, list[EngineEvent]] = {}
        self._adapters = adapters
        self._dice = dice

    def submit(self) -> None:
        dice = self._dice
        adapter = dice.choice(self._adapters)
        # Few different beginnings, so that blocks are found again.
        prompt = [dice.randrange(3) + 5] * dice.randrange(1, 40) + [
            dice.randrange(500) for _ in range(dice.randrange(3))
        ]
        sampled = dice.random() < 0.25
        request = EngineRequest(
            str(len(self.requests)),
            tuple(prompt),
            adapter,
            Sampling(0.9, seed=len(self.requests)) if sampled else Sampling(),
            dice.randrange(1, 40),
            0,
            frozenset(),
            3 if dice.random() < 0.1 else None,
        )
        sequence = Sequence(request, adapter)
        self.stepper.check(sequence)
        self.requests[request.request_id] = (request, adapter)
        self.stepper.scheduler.add(sequence)

    def cancel(self) -> None:
        # Mostly of late ones: they run, wait, or gave way.
        if self.requests:
            self._note(self.stepper.cancel(self._dice.choice(list(self.requests)[-12:])))

    def step(self) -> None:
        self._note(self.stepper.step())
        stats = self.stepper.stats()
        assert stats.blocks_used + stats.blocks_cached <= stats.blocks_total

    def _note(self, events: list[EngineEvent]) -> None:
        for event in events:
            self.events.setdefault(event.request_id, []).append(event)


def tokens_of(events: list[EngineEvent]) -> list[int]:
    return [event.token_id for event in events if isinstance(event, TokenEvent)]


@torch.inference_mode()
def test_whatever_comes_every_request_ends_once_and_nothing_is_left(tiny_base: Callable[..., AddedBase]) -> None:
    stored = tiny_base().stored
    decoder = Tracer(stored).decoder
    block_bytes = decoder.new_cache(1 << 20).block_bytes
    bound: list[Adapter[Any]] = [
        random_adapter(kind, stored.spec, seed, strength=0.3).bound(torch.float32)
        for kind, seed in (("lora", 1), ("lora", 2), ("qalora", 1), ("prefix", 1))
    ]
    sick = random_adapter("lora", stored.spec, 3)
    for tensor in sick.tensors.values():
        tensor[:] = 1e37
    poisoned = sick.bound(torch.float32)
    overlays = [None, build_overlay(stored, decoder, bound[0]), build_overlay(stored, decoder, bound[2])]
    limits = Limits(max_batch_size=6, max_prefill_tokens=12, max_idle_prefill_tokens=24, max_active_adapters=3)
    stepper = Stepper(decoder, limits, BLOCKS * block_bytes, torch.device("cpu"))
    dice = random.Random(0)
    soak = Soak(stepper, [None, None, *bound, poisoned], dice)
    for _ in range(OPERATIONS):
        chance = dice.random()
        if chance < 0.2:
            soak.submit()
        elif chance < 0.24:
            soak.cancel()
        elif chance < 0.26:
            stepper.overlay = dice.choice(overlays)
        else:
            soak.step()
    while not stepper.scheduler.idle:
        soak.step()

    stats = stepper.stats()
    assert (stats.running, stats.waiting, stats.active_adapters, stats.blocks_used) == (0, 0, 0, 0)
    pool = stepper.scheduler.pool
    assert all(pool.holders(block) == 0 for block in range(pool.num_blocks))
    assert soak.events.keys() == soak.requests.keys()
    for events in soak.events.values():
        assert [isinstance(event, TokenEvent) for event in events] == [True] * (len(events) - 1) + [False]
    assert stats.finished + stats.failed + stats.cancelled == len(soak.requests)
    # The soak is one: every stage and every way to end was met.
    assert min(stats.preemptions, stats.cached_tokens, stats.finished, stats.failed, stats.cancelled) > 0

    for request_id, events in soak.events.items():
        request, adapter = soak.requests[request_id]
        last = events[-1]
        if isinstance(last, FailEvent):
            reason = last.error and last.error.reason
            assert reason == ("NOT_FINITE" if reason else None)
            assert adapter is poisoned or reason is None
            continue
        assert isinstance(last, FinishEvent)
        assert adapter is not poisoned
        alone = Soak(Stepper(decoder, limits, 1 << 24, torch.device("cpu")), [], dice)
        alone.stepper.scheduler.add(Sequence(request, adapter))
        while not alone.stepper.scheduler.idle:
            alone.step()
        assert tokens_of(events) == tokens_of(alone.events[request_id])
