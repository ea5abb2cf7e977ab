"""What every benchmark prints and writes: rows of {metric, value, unit, baseline, ratio}, and the machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from weft import __version__


@dataclass(frozen=True)
class Row:
    """One figure. `ratio` is value / baseline where there is a baseline."""

    metric: str
    value: float
    unit: str
    baseline: str = ""
    ratio: float | None = None
    spread: float | None = None
    """Half the distance between the quartiles of the repeats, as a share of their median."""


def median_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """The median, and half the interquartile range as a share of it."""
    middle = statistics.median(values)
    if len(values) < 2:
        return middle, 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, (high - low) / 2 / middle if middle else 0.0


def arguments(description: str, *, hours: bool = False, parts: Sequence[str] = ()) -> argparse.Namespace:
    """The command line that every benchmark has; one that takes `hours` can go on where it was stopped, too, and of one
    in `parts` each can be run alone."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer repeats; ends within 90 s")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    if hours:
        parser.add_argument("--resume", action="store_true", help="go on where an earlier run was stopped")
    if parts:
        parser.add_argument("--only", choices=parts, help="this part alone")
    return parser.parse_args()


def report(title: str, rows: Sequence[Row], path: Path | None) -> None:
    """Prints a table, and writes the rows where asked."""
    print(f"\n{title}\n{machine()}\n")
    width = max(len(row.metric) for row in rows)
    for row in rows:
        value = f"{row.value:,.4g}" if abs(row.value) < 1 else f"{row.value:,.1f}"
        ratio = f"  {row.ratio:.2f} x {row.baseline}" if row.ratio is not None else ""
        spread = f"  (spread {row.spread:.0%})" if row.spread is not None else ""
        print(f"  {row.metric:<{width}}  {value:>12} {row.unit}{ratio}{spread}")
    if path is not None:
        path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def machine() -> str:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, weft {__version__}"
    return f"{model}, {os.cpu_count()} cores{gpu}; {versions}"
