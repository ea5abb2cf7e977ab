"""The step thread's mailbox: whoever asks for something between two steps gets an answer, whatever becomes of it."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from benchmarks.engines import Tracer
from tests.tiny_models import AddedBase
from weft_registry.errors import UnavailableError
from weft_server.engine import EngineEvent, EngineRequest, FailEvent, Sampling
from weft_server.torch_engine.scheduler import Limits
from weft_server.torch_engine.sequence import Sequence as EngineSequence
from weft_server.torch_engine.step_thread import StepThread
from weft_server.torch_engine.stepper import Stepper

LIMITS = Limits(max_batch_size=4, max_prefill_tokens=16, max_idle_prefill_tokens=16, max_active_adapters=4)


class Held:
    """A step thread that can be held between two steps, so that what is asked meanwhile waits in its mailbox."""

    def __init__(self, steps: StepThread, callers: ThreadPoolExecutor) -> None:
        self.steps = steps
        self.callers = callers
        self.events: list[EngineEvent] = []
        self.go_on = threading.Event()
        steps.start(self._deliver)

    def _deliver(self, events: Sequence[EngineEvent]) -> None:
        self.events += events

    def hold(self, then: Callable[[], None] = lambda: None) -> None:
        """Returns when the thread stands still. Once it may go on it does `then`, before anything that came later."""
        holding = threading.Event()

        def wait() -> None:
            holding.set()
            assert self.go_on.wait(60)
            then()

        self.steps.post(wait)
        assert holding.wait(60)

    def received(self, count: int) -> None:
        """Waits until so many messages are in the mailbox."""
        while len(self.steps._inbox) < count:
            time.sleep(0.001)

    def joined(self) -> None:
        """Waits for the thread's end, and so for the last event."""
        self.steps._thread.join(60)
        assert not self.steps._thread.is_alive()


@pytest.fixture
def held(tiny_base: Callable[..., AddedBase]) -> Iterator[Held]:
    def build() -> Stepper:
        return Stepper(Tracer(tiny_base().stored).decoder, LIMITS, 1 << 20, torch.device("cpu"))

    with ThreadPoolExecutor(4) as callers:
        held = Held(StepThread(build, num_threads=0, max_waiting=8), callers)
        yield held
        held.go_on.set()
        held.steps.close()


def sequence(request_id: str) -> EngineSequence:
    return EngineSequence(EngineRequest(request_id, (1, 2), None, Sampling(), 4, 0, frozenset(), None), None)


def broken() -> Any:
    raise KeyError("a bug")


def test_an_action_that_fails_is_its_callers_failure_and_the_steps_go_on(held: Held) -> None:
    with pytest.raises(KeyError, match="a bug"):
        held.steps.between_steps(broken)
    assert held.steps.between_steps(lambda: "done") == ("done", 0)
    assert held.steps.alive


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("stage", ["in the mailbox", "taken out of it"])
def test_when_the_thread_dies_whoever_waits_for_it_hears_of_it(held: Held, stage: str) -> None:
    taken = stage == "taken out of it"
    # What comes while the thread is held is taken out of the mailbox together: here, behind the message it dies of.
    held.hold() if taken else held.hold(then=broken)
    if taken:
        held.steps.post(broken)
    caller = held.callers.submit(held.steps.between_steps, lambda: "done")
    held.received(1 + taken)
    held.steps.submit(sequence("a"))
    held.go_on.set()
    with pytest.raises(UnavailableError, match="a bug") as refused:
        caller.result(timeout=60)
    assert refused.value.reason == "ENGINE_DIED"
    held.joined()
    assert [(event.request_id, type(event)) for event in held.events] == [("a", FailEvent)]
    with pytest.raises(UnavailableError):
        held.steps.between_steps(lambda: "too late")
    with pytest.raises(UnavailableError):
        held.steps.submit(sequence("b"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_request_cancelled_just_before_the_thread_dies_still_ends_once(held: Held) -> None:
    held.hold()
    held.steps.submit(sequence("a"))
    held.steps.post("a")
    held.steps.post(broken)
    held.go_on.set()
    held.joined()
    assert held.events == [FailEvent("a", None)]


def test_closing_refuses_whoever_waits_and_does_nothing_more_for_them(held: Held) -> None:
    done: list[str] = []
    held.hold()
    caller = held.callers.submit(held.steps.between_steps, lambda: done.append("done"))
    held.received(1)
    held.steps.submit(sequence("a"))
    closing = held.callers.submit(held.steps.close)
    while not held.steps._closing:
        time.sleep(0.001)
    held.go_on.set()
    with pytest.raises(UnavailableError, match="stopping"):
        caller.result(timeout=60)
    closing.result(timeout=60)
    assert done == []
    assert [(event.request_id, type(event)) for event in held.events] == [("a", FailEvent)]
    with pytest.raises(UnavailableError, match="not running"):
        held.steps.between_steps(lambda: "too late")
