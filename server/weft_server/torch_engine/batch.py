"""What one step computes: rows of tokens, and which blocks of the key-value cache they read and write. Made from the
scheduler's choice, read by a decoder; nothing here outlives the step.

Legend: T rows (tokens) of the step, E hidden size, S rows whose logits are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from weft_adapters.segments import Segments


@dataclass(frozen=True, slots=True)
class Span:
    """One sequence's new tokens: the one it generated last, or a piece of its prompt."""

    rows: slice
    """Where its tokens stand in the step."""
    start: int
    """Its tokens that are cached already, virtual ones included: the position of its first new token."""
    blocks: Sequence[int]
    """Its block table. Token i lies in `blocks[i // BLOCK_TOKENS]` at slot `i % BLOCK_TOKENS`; the table covers
    `start` and the new tokens, and may be longer. Blocks that hold none of the new tokens are only read."""

    @property
    def count(self) -> int:
        """New tokens."""
        return int(self.rows.stop - self.rows.start)


@dataclass(frozen=True, slots=True)
class Embedded:
    """Rows that stand for no token of the vocabulary: virtual tokens of a soft prompt."""

    rows: slice
    embedding_TE: Tensor


@dataclass(frozen=True)
class StepBatch:
    """One step. Rows are grouped by wearer: those of the merged adapter, those of each active adapter in the order of
    the indices, those of the base model."""

    token_T: Tensor
    """int64; 0 in the rows of `embedded`."""
    position_T: Tensor
    """int64."""
    segments: Segments
    """Rows by active adapter; rows of the merged adapter count as base rows here."""
    num_merged: int
    """Rows 0 to num_merged - 1 wear the merged adapter; 0 when none does."""
    spans: Sequence[Span]
    """In the order of their rows, which they cover without a gap."""
    last_S: Tensor
    """int64, ascending: the rows whose logits are wanted. A decoder must not assume one for every span."""
    embedded: Sequence[Embedded] = ()
    """In the order of their rows."""
