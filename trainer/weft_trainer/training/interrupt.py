"""SIGINT and SIGTERM while training: the step is finished, a checkpoint is saved, and the run says how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from weft_registry.errors import PreconditionError

REASON = "INTERRUPTED"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether this process was asked to end. The signal's handler is its only writer."""

    def __init__(self) -> None:
        self.signal = 0
        """The signal's number; 0 as long as there was none."""

    @contextmanager
    def listening(self, said: Callable[[str], None]) -> Iterator[None]:
        """Takes the signals over. A second one does what it always did. Outside the main thread it changes nothing,
        because only there Python lets signals be handled."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def handle(number: int, _frame: FrameType | None) -> None:
            self.signal = number
            restore()
            said(f"{signal.Signals(number).name}: finishing this step, then saving; once more ends at once")

        for number in _SIGNALS:
            signal.signal(number, handle)
        try:
            yield
        finally:
            restore()


def interrupted(number: int, step: int, total: int, checkpoint: str) -> PreconditionError:
    """The error that a run stopped by a signal ends with. `metadata["signal"]` is the signal's number."""
    return PreconditionError(
        f"stopped by {signal.Signals(number).name} after step {step} of {total}; everything is in {checkpoint}: go on "
        "with the same configuration and training.resume=true",
        reason=REASON,
        metadata={"signal": str(number), "checkpoint": checkpoint},
    )
