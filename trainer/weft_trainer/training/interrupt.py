"""SIGINT and SIGTERM during a run: what can be saved is saved, the rest ends at once, and the run says how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from weft_registry.errors import PreconditionError
from weft_trainer.config.run import TrainConfig
from weft_trainer.training import checkpoints

REASON = "INTERRUPTED"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """The run was asked to end, at a place where it can. No error: nothing that handles errors is to keep it."""


class StopRequest:
    """Whether this process was asked to end. The signals' handler is its only writer.

    While it listens, a signal raises `Stopped` wherever the run is; from `finish` on it is only noted, and within
    `at_once` it raises again. A second signal does what it always did; except that SIGTERM, where nobody handles
    it, raises `SystemExit`, so that temporary files and other processes go too.
    """

    def __init__(self) -> None:
        self.signal = 0
        """The signal's number; 0 as long as there was none."""
        self._doing: str | None = None
        self._said: Callable[[str], None] = lambda _: None
        self._before: dict[int, Any] = {}

    @contextmanager
    def listening(self, said: Callable[[str], None]) -> Iterator[None]:
        """Takes the signals over; `said` hears of one that is noted. Outside the main thread it changes nothing,
        because only there Python lets signals be handled."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._said = said
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        try:
            for number in _SIGNALS:
                signal.signal(number, self._handle)
            yield
        finally:
            for taken, handler in self._before.items():
                signal.signal(taken, handler)

    def finish(self, doing: str) -> None:
        """From here on a signal is only noted. `doing` says what is being finished, for people."""
        self._doing = doing

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """What may be cut off after all. Raises `Stopped`, also for a signal that was noted before."""
        before, self._doing = self._doing, None
        try:
            if self.signal:
                raise Stopped
            yield
        finally:
            self._doing = before

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            self._again(number, frame)
            return
        self.signal = number
        if self._doing is None:
            raise Stopped
        self._said(f"{signal.Signals(number).name}: {self._doing}; once more ends at once")

    def _again(self, number: int, frame: FrameType | None) -> None:
        handler = self._before[number]
        if callable(handler):
            handler(number, frame)
        elif handler == signal.SIG_DFL:
            raise SystemExit(128 + number)


def interrupted(number: int, step: int, total: int, checkpoint: Path) -> PreconditionError:
    """The error that a run stopped by a signal ends with. `metadata["signal"]` is the signal's number."""
    return PreconditionError(
        f"stopped by {signal.Signals(number).name} after step {step} of {total}; everything is in {checkpoint}: go on "
        "with the same configuration and training.resume=true",
        reason=REASON,
        metadata={"signal": str(number), "checkpoint": str(checkpoint)},
    )


def not_begun(number: int, config: TrainConfig) -> PreconditionError:
    """The same, before the first step; of a run that resumes, everything is in what it would have gone on from."""
    name = signal.Signals(number).name
    checkpoint = checkpoints.newest(config.checkpoints) if config.training.resume else None
    if checkpoint is None:
        return PreconditionError(
            f"stopped by {name} before the first step: there is nothing to resume, start it again",
            reason=REASON,
            metadata={"signal": str(number)},
        )
    return PreconditionError(
        f"stopped by {name} before training went on; everything is still in {checkpoint}: go on with the same "
        "configuration and training.resume=true",
        reason=REASON,
        metadata={"signal": str(number), "checkpoint": str(checkpoint)},
    )
