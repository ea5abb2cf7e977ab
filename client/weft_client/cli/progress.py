"""A progress bar on stderr for transfers; nothing where stderr is not a terminal. Knows only bytes."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager

from weft_registry.api import Progress


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
