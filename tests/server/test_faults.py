"""Faults inside the engine: whoever is affected hears of it, and nobody waits for ever."""

import queue
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from benchmarks.engines import engine_options
from tests.tiny_models import AddedBase
from weft_server.engine import EngineEvent, EngineRequest, FailEvent, FinishEvent, Sampling
from weft_server.torch_engine.decoder import TorchDecoder
from weft_server.torch_engine.engine import TorchEngine
from weft_server.torch_engine.scheduler import Scheduler


class Started:
    """An engine whose events are awaited one by one."""

    def __init__(self, engine: TorchEngine) -> None:
        self.engine = engine
        self.events: queue.Queue[EngineEvent] = queue.Queue()
        engine.start(self._deliver)

    def _deliver(self, events: Sequence[EngineEvent]) -> None:
        for event in events:
            self.events.put(event)

    def ask(self, request_id: str) -> None:
        self.engine.submit(EngineRequest(request_id, (1, 2), None, Sampling(), 4, 0, frozenset(), None))

    def last(self) -> EngineEvent:
        while True:
            event = self.events.get(timeout=60)
            if isinstance(event, FinishEvent | FailEvent):
                return event


@pytest.fixture
def started(tiny_base: Callable[..., AddedBase]) -> Iterator[Started]:
    engine = TorchEngine(tiny_base().stored, engine_options(torch.float32))
    yield Started(engine)
    engine.close()


def test_a_step_that_fails_fails_its_requests_and_the_next_one_works(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = TorchDecoder.forward

    def broken(*args: Any) -> torch.Tensor:
        raise RuntimeError("out of memory, say")

    monkeypatch.setattr(TorchDecoder, "forward", broken)
    started.ask("a")
    event = started.last()
    assert isinstance(event, FailEvent)
    assert event.error is not None
    assert event.error.reason == "STEP_FAILED"
    assert "out of memory, say" in event.error.message
    monkeypatch.setattr(TorchDecoder, "forward", forward)
    started.ask("b")
    assert isinstance(started.last(), FinishEvent)
    assert started.engine.alive


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_the_step_thread_dies_every_request_hears_of_it(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Scheduler) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(Scheduler, "schedule", broken)
    started.ask("a")
    event = started.last()
    assert isinstance(event, FailEvent)
    assert event.error is not None
    assert event.error.reason == "ENGINE_DIED"
    started.engine.close()
    assert not started.engine.alive
