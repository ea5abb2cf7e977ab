"""How a run tells people where it is. Knows nothing of models."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINES_PER_TASK = 10


class Task(Protocol):
    """One piece of work with a known number of steps."""

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """`steps` more are done; `note` (loss, tokens/s) replaces the last one."""
        ...

    def skip(self, steps: int) -> None:
        """`steps` were done before this process began: they say nothing about the time that the others take."""
        ...


class Reporter(Protocol):
    """Where a run reports to."""

    def message(self, text: str) -> None:
        """One line worth keeping."""
        ...

    def task(self, label: str, total: int) -> AbstractContextManager[Task]:
        """A piece of work, for as long as the context lasts."""
        ...


class QuietReporter:
    """Says nothing, not even what was left out of the data. For tests and programs."""

    def message(self, text: str) -> None:
        """See `Reporter.message`."""

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Task]:
        """See `Reporter.task`."""
        yield _Silent()


class ConsoleReporter:
    """A progress bar with note and time left on a terminal; about ten lines a task where there is none. Without `bars`
    messages alone."""

    def __init__(self, console: Console | None = None, *, bars: bool = True) -> None:
        self._console, self._bars = console or Console(stderr=True), bars

    def message(self, text: str) -> None:
        """See `Reporter.message`."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Task]:
        """See `Reporter.task`."""
        if not self._bars:
            yield _Silent()
            return
        if not self._console.is_terminal:
            yield _Lines(self._console, label, total)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console) as progress:
            yield _Bar(progress, label, total)


class _Silent:
    def advance(self, steps: int = 1, note: str | None = None) -> None:
        pass

    def skip(self, steps: int) -> None:
        pass


class _Bar:
    def __init__(self, progress: Progress, label: str, total: int) -> None:
        self._progress = progress
        self._id = progress.add_task(label, total=total, note="")

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        if note is None:
            self._progress.update(self._id, advance=steps)
        else:
            self._progress.update(self._id, advance=steps, note=note)

    def skip(self, steps: int) -> None:
        self._progress.reset(self._id, completed=steps)


class _Lines:
    def __init__(self, console: Console, label: str, total: int) -> None:
        self._console, self._label, self._total = console, label, total
        self._done, self._skipped, self._note, self._start = 0, 0, "", time.monotonic()

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        before = self._done * _LINES_PER_TASK // self._total
        self._done += steps
        self._note = note if note is not None else self._note
        if self._done * _LINES_PER_TASK // self._total > before:
            per_step_s = (time.monotonic() - self._start) / (self._done - self._skipped)
            left = duration(per_step_s * (self._total - self._done))
            note = f"  {self._note}" if self._note else ""
            line = f"{self._label} {self._done}/{self._total}{note}  {left} left"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def skip(self, steps: int) -> None:
        self._done = self._skipped = steps
        self._start = time.monotonic()


def duration(seconds: float) -> str:
    """A time span for people: "45 s", "3 min 20 s", "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
