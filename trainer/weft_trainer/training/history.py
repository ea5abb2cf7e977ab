"""The losses of a run, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Points = Sequence[tuple[int, float]]
"""(step, loss), by step."""


@dataclass(frozen=True)
class History:
    """The losses of a run, those before a resumption included."""

    train: Points
    """Mean over the steps since the last point."""
    held_out: Points
    """One per evaluation."""
