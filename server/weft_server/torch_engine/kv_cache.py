"""The key-value cache: arenas of fixed row length, each row one running sequence.

A sequence says at admission how many tokens it may reach, and gets a row in the arena of the next power of two. Rows
of an arena are always 0..n-1: when one is freed the last one moves into the hole, so that decoding reads whole leading
blocks without gathering. The arenas of different lengths keep a long sequence from padding the short ones: no row is
more than twice as long as its sequence may become.

Legend: L layers, S rows of an arena, H key-value heads, C its row length, D head size, P virtual tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from weft_adapters.kinds.kind import KeyValues

OwnerT = TypeVar("OwnerT")
_SHORTEST_ROW = 64


@dataclass(frozen=True)
class CacheShape:
    """What one token costs."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize


class Arena(Generic[OwnerT]):
    """Rows of one length. Owns the tensors and who has which row."""

    def __init__(self, shape: CacheShape, row_length: int) -> None:
        self.row_length = row_length
        self._shape = shape
        self.owners: list[OwnerT] = []
        """The owner of each row in use, in row order."""
        self.key_LSHCD = self._empty(0)
        self.value_LSHCD = self._empty(0)

    @property
    def rows(self) -> int:
        """Rows there is room for."""
        return self.key_LSHCD.shape[1]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.row_length * self._shape.token_bytes

    def add(self, owner: OwnerT) -> int:
        """Takes the next row for `owner`. The caller made room."""
        assert len(self.owners) < self.rows
        self.owners.append(owner)
        return len(self.owners) - 1

    def remove(self, owner: OwnerT, *, wipe: bool) -> None:
        """Frees the row of `owner`: the last row moves into it.

        `wipe` a row that may hold NaN: masking adds -inf to a score, which does not undo a NaN, so whoever got the
        row next would read it.
        """
        row, last = self.row(owner), len(self.owners) - 1
        for tensor in (self.key_LSHCD, self.value_LSHCD):
            if row != last:
                tensor[:, row] = tensor[:, last]
            elif wipe:
                tensor[:, row] = 0
        self.owners[row] = self.owners[last]
        self.owners.pop()

    def row(self, owner: OwnerT) -> int:
        """The row of `owner` now."""
        return next(i for i, found in enumerate(self.owners) if found is owner)

    def write_prefix(self, row: int, prefix: KeyValues) -> None:
        """Puts virtual tokens at the start of a row, in every layer."""
        self.key_LSHCD[:, row, :, : prefix.length] = prefix.key_LHPD
        self.value_LSHCD[:, row, :, : prefix.length] = prefix.value_LHPD

    def resize(self, rows: int) -> None:
        """Makes room for `rows`, at least those in use."""
        used = len(self.owners)
        for name in ("key_LSHCD", "value_LSHCD"):
            resized = self._empty(rows)
            resized[:, :used] = getattr(self, name)[:, :used]
            setattr(self, name, resized)

    def _empty(self, rows: int) -> Tensor:
        s = self._shape
        # Zeroed, not merely allocated, for the same reason.
        return torch.zeros(
            s.num_layers, rows, s.num_kv_heads, self.row_length, s.head_dim, dtype=s.dtype, device=s.device
        )


class KvCache(Generic[OwnerT]):
    """All arenas under one byte limit."""

    def __init__(self, shape: CacheShape, limit_bytes: int) -> None:
        self._shape = shape
        self._arenas: dict[int, Arena[OwnerT]] = {}
        self.limit_bytes = limit_bytes
        self.reserved_bytes = 0
        """Bytes promised to running sequences."""

    def cost(self, num_tokens: int) -> int:
        """Bytes that a sequence of at most `num_tokens` reserves."""
        return _row_length(num_tokens) * self._shape.token_bytes

    def fits(self, num_tokens: int) -> bool:
        """Whether such a sequence can be admitted now."""
        return self.reserved_bytes + self.cost(num_tokens) <= self.limit_bytes

    @property
    def allocated_bytes(self) -> int:
        """Bytes held, free rows included; never above the limit."""
        return sum(arena.rows * arena.row_bytes for arena in self._arenas.values())

    def add(self, owner: OwnerT, num_tokens: int) -> Arena[OwnerT]:
        """Reserves a row that may reach `num_tokens`. The caller asked `fits` first."""
        length = _row_length(num_tokens)
        arena = self._arenas.setdefault(length, Arena(self._shape, length))
        if len(arena.owners) == arena.rows:
            self._grow(arena)
        arena.add(owner)
        self.reserved_bytes += arena.row_bytes
        return arena

    def remove(self, owner: OwnerT, arena: Arena[OwnerT], *, wipe: bool = False) -> None:
        """Frees a row. An arena keeps its room for the next sequence until another needs it, or it is empty."""
        arena.remove(owner, wipe=wipe)
        self.reserved_bytes -= arena.row_bytes
        if not arena.owners:
            del self._arenas[arena.row_length]

    def arenas(self) -> list[Arena[OwnerT]]:
        """The arenas in use, shortest rows first."""
        return [self._arenas[length] for length in sorted(self._arenas)]

    def _grow(self, arena: Arena[OwnerT]) -> None:
        """Doubles an arena's rows as far as the limit lets it, after taking back free rows if it must."""
        if self.allocated_bytes + arena.row_bytes > self.limit_bytes:
            for other in self._arenas.values():
                if other.rows > len(other.owners):
                    other.resize(len(other.owners))
        room = (self.limit_bytes - self.allocated_bytes) // arena.row_bytes
        arena.resize(arena.rows + max(1, min(arena.rows, room)))


def _row_length(num_tokens: int) -> int:
    return max(_SHORTEST_ROW, 1 << (num_tokens - 1).bit_length())
