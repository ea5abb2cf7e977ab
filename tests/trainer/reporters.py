"""A reporter that listens to a run, and acts at one of its steps."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from weft_trainer.progress import QuietReporter, Task


class Heard(QuietReporter):
    """Keeps what a run reports; does something when the tasks of this label have come to `step` together, once."""

    def __init__(self, step: int = 0, action: Callable[[], None] | None = None, label: str = "training") -> None:
        self.messages: list[str] = []
        self.steps = 0
        self._step, self._action, self._label = step, action, label

    def message(self, text: str) -> None:
        self.messages.append(text)

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Task]:
        with super().task(label, total) as task:
            yield self if label.startswith(self._label) else task

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        self.steps += steps
        if self.steps == self._step and self._action is not None:
            self._action()

    def skip(self, steps: int) -> None:
        self.steps += steps


def send(number: int) -> Callable[[], None]:
    """Sends this process a signal."""
    return lambda: os.kill(os.getpid(), number)
