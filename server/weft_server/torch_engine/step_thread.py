"""The one thread that computes, and the mailbox in front of it.

It builds the decoder and takes every step: no other thread of the process runs parallel products on the CPU. That is
not tidiness: OpenMP keeps a team of workers for EACH thread that ever asked for one, and once there are more of them
than cores it stops spinning for the next product and sleeps instead. Measured on two cores, a decode step of 24 ms took
40 to 50 ms when the main thread had built the model.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Generic, TypeVar

import torch

from weft_registry.errors import ExhaustedError, UnavailableError
from weft_server.engine import Deliver, EngineEvent, FailEvent
from weft_server.torch_engine.sequence import Sequence
from weft_server.torch_engine.stepper import Stepper

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class _Asked(Generic[_T]):
    """Something small to be done between two steps, that somebody waits for."""

    def __init__(self, action: Callable[[], _T], stepper: Stepper) -> None:
        self.done: Future[tuple[_T, int]] = Future()
        self._action = action
        self._stepper = stepper
        self._begun = stepper.begun

    def __call__(self) -> None:
        """Does it. What it raises is its caller's: the steps go on."""
        try:
            result = self._action()
        except Exception as error:  # noqa: BLE001 - raised again in the thread that waits for it
            self.done.set_exception(error)
        else:
            self.done.set_result((result, self._stepper.begun - self._begun))


Message = Sequence | str | Callable[[], None]
"""A new sequence, the id of a request to cancel, or something small to be done between two steps."""


class StepThread:
    """Runs a `Stepper` until it is closed. Its methods may be called from any other thread."""

    def __init__(self, build: Callable[[], Stepper], *, num_threads: int, max_waiting: int) -> None:
        """Has the thread call `build`, and waits for it. Raises what `build` raises."""
        self._build = build
        self._num_threads = num_threads
        self._max_waiting = max_waiting
        self._inbox: deque[Message] = deque()
        self._taken: deque[Message] = deque()
        """Out of the inbox, and not done yet. The thread's own."""
        self._events: list[EngineEvent] = []
        """Not delivered yet. The thread's own."""
        self._wake = threading.Condition()
        self._deliver: Deliver = _nobody
        self._started = False
        self._closing = False
        self._queued = 0
        """Sequences submitted and not yet in the batch, as `submit` counts them."""
        built: Future[Stepper] = Future()
        self._thread = threading.Thread(target=self._run, args=(built,), name="weft-step", daemon=True)
        self._thread.start()
        self.stepper = built.result()

    @property
    def alive(self) -> bool:
        """Whether it takes steps: started, and neither closed nor dead."""
        return self._started and self._thread.is_alive()

    @property
    def waiting_count(self) -> int:
        """Sequences submitted and not in the batch."""
        return self._queued

    def start(self, deliver: Deliver) -> None:
        """From now on requests are computed, and events delivered."""
        self._deliver = deliver
        self._started = True

    def close(self) -> None:
        """Fails what runs or waits with `UnavailableError`, and ends the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def submit(self, sequence: Sequence) -> None:
        """Queues a sequence. Raises `ExhaustedError` when the queue is full, `UnavailableError` once it is closing."""
        with self._wake:
            if self._closing or not self._started:
                raise UnavailableError("the engine is not running")
            if self._queued >= self._max_waiting:
                raise ExhaustedError(
                    f"{self._queued} requests are waiting, the most this server queues: come back later",
                    reason="QUEUE_FULL",
                    metadata={"limit": str(self._max_waiting)},
                    retry_after_s=1.0,
                )
            self._queued += 1
            self._inbox.append(sequence)
            self._wake.notify()

    def post(self, message: str | Callable[[], None]) -> None:
        """Leaves a cancellation or an action; after the end nobody reads it, and nothing is left to do."""
        with self._wake:
            self._inbox.append(message)
            self._wake.notify()

    def between_steps(self, action: Callable[[], _T]) -> tuple[_T, int]:
        """Has something small done between two steps, and waits. Answers its result, and how many steps began after it
        was asked for and before it was done: never more than one. Raises what the action raises, and `UnavailableError`
        if the thread dies or is closed before it gets there."""
        with self._wake:
            if self._closing:
                raise UnavailableError("the engine is not running")
            # Read under the lock that the inbox is emptied under: a step that begins after this is the one step that
            # may already have looked into the inbox, or it comes after the action.
            asked = _Asked(action, self.stepper)
            self._inbox.append(asked)
            self._wake.notify()
        return asked.done.result()

    # What follows runs in the thread.

    @torch.inference_mode()
    def _run(self, built: Future[Stepper]) -> None:
        try:
            if self._num_threads:
                torch.set_num_threads(self._num_threads)
            stepper = self._build()
        except Exception as error:  # noqa: BLE001 - raised again in the thread that waits for it
            built.set_exception(error)
            return
        built.set_result(stepper)
        try:
            self._loop(stepper)
        except BaseException as error:
            # Nothing may leave a caller waiting for a thread that is gone.
            _log.exception("the step thread died")
            with self._wake:
                self._closing = True
                left = [*self._taken, *self._inbox]
            failure = UnavailableError(f"the engine stopped: {error}", reason="ENGINE_DIED")
            unheard = [message for message in _refuse(left, failure) if isinstance(message, Sequence)]
            self._events += stepper.drain(failure) + [FailEvent(s.request.request_id, failure) for s in unheard]
            self._deliver_all()
            raise

    def _loop(self, stepper: Stepper) -> None:
        while True:
            with self._wake:
                while not self._inbox and stepper.scheduler.idle and not self._closing:
                    self._wake.wait()
                closing = self._closing
                self._taken.extend(self._inbox)
                self._inbox.clear()
            if closing:
                stopping = UnavailableError("the server is stopping")
                self._taken = deque(_refuse(self._taken, stopping))
                self._receive(stepper)
                self._events += stepper.drain(stopping)
                self._deliver_all()
                return
            self._receive(stepper)
            self._events += stepper.step()
            with self._wake:
                waiting = sum(isinstance(message, Sequence) for message in self._inbox)
                self._queued = stepper.scheduler.waiting_count + waiting
            if self._events:
                self._deliver_all()

    def _deliver_all(self) -> None:
        events, self._events = self._events, []
        self._deliver(events)

    def _receive(self, stepper: Stepper) -> None:
        while self._taken:
            message = self._taken[0]
            if isinstance(message, Sequence):
                stepper.scheduler.add(message)
            elif isinstance(message, str):
                self._events += stepper.cancel(message)
            else:
                message()
            # Only now: whoever is left here when the thread dies still has to hear of it.
            self._taken.popleft()


def _refuse(messages: Iterable[Message], error: UnavailableError) -> list[Message]:
    """Tells those who wait for something to be done that it will not be; the other messages."""
    others: list[Message] = []
    for message in messages:
        if isinstance(message, _Asked):
            message.done.set_exception(error)
        else:
            others.append(message)
    return others


def _nobody(events: object) -> None:
    """Before the start there are no requests, and so no events."""
