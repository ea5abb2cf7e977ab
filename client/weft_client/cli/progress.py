"""Progress on stderr: of transfers, in bytes and on terminals only; and of what the trainer does."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weft_registry.api import Progress
    from weft_trainer.progress import Reporter


@contextmanager
def transfer_bar(label: str, total_bytes: int, quiet: bool) -> Generator[Progress | None]:
    """Yields what to call with each further number of bytes done, or None where there is nobody to watch."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=total_bytes)
        yield lambda done: bars.advance(task, done)


def reporter(quiet: bool) -> Reporter:
    """The `report` of `weft_trainer.api`, on stderr. A quiet one has no progress bar, and still says what is worth
    keeping, such as what was left out of the data. Only for commands that import the trainer anyway."""
    from weft_trainer.progress import ConsoleReporter

    return ConsoleReporter(bars=not quiet)
