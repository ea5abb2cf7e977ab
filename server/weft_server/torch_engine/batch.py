"""What one step computes: rows of tokens, and which cache rows they read and write. Made by the scheduler's choice,
read by the decoder; nothing here outlives the step.

Legend: T rows (tokens) of the step, B sequences of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from weft_adapters.segments import Segments
from weft_server.torch_engine.kv_cache import Arena


@dataclass(frozen=True)
class DecodeGroup:
    """The running sequences of one arena: its rows 0..B-1, one new token each."""

    arena: Arena[Any]
    rows: slice
    """Where the group's tokens stand in the step."""
    position_B: Tensor
    """int64: where each new token goes in its cache row."""
    length: int
    """How much of the rows to read: at least the longest sequence, its new token included."""


@dataclass(frozen=True)
class Prefill:
    """One sequence's prompt, after `start` tokens that the cache already holds."""

    arena: Arena[Any]
    arena_row: int
    rows: slice
    start: int


@dataclass(frozen=True)
class MergedRows:
    """How the step's rows divide between the merged weights and the base's own."""

    merged: Tensor | None
    """int64 rows that wear the merged adapter; None when all do."""
    others: Tensor | None
    """int64 rows that do not; None when there are none."""


@dataclass(frozen=True)
class StepBatch:
    """One step."""

    token_T: Tensor
    position_T: Tensor
    segments: Segments
    """Rows by active adapter; rows of the merged adapter count as base rows here."""
    merged: MergedRows | None
    """None when no row wears the merged adapter."""
    decodes: Sequence[DecodeGroup]
    prefills: Sequence[Prefill]
    last_S: Tensor
    """int64: the row of each sequence's last token, whose logits are wanted."""
