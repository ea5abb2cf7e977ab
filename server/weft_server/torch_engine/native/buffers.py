"""What the operators of a step pass on to each other: allocated once for the most rows seen, and grown when more come.

Legend: T rows, S rows whose logits are wanted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weft_adapters.base.config import ModelConfig


@dataclass(frozen=True)
class Widths:
    """Numbers a row."""

    hidden: int
    wide: int
    """The widest output of a site."""
    query: int
    inner: int
    groups: int
    """The most groups of a site's input."""

    @classmethod
    def of(cls, config: ModelConfig, group_size: int) -> Widths:
        """Those of a model."""
        query = config.num_heads * config.head_dim
        wide = max(query + 2 * config.num_kv_heads * config.head_dim, 2 * config.intermediate_size, config.hidden_size)
        widest_input = max(config.hidden_size, query, config.intermediate_size)
        return cls(
            config.hidden_size, wide, query, max(query, config.intermediate_size), -(-widest_input // group_size)
        )


class Buffers:
    """The buffers of a step of at most `rows` rows, whose adapters need at most `ranks` ranks."""

    def __init__(self, widths: Widths, rows: int, ranks: int) -> None:
        self.rows, self.ranks = rows, ranks
        self.groups = widths.groups
        self.hidden = torch.zeros(rows, widths.hidden)
        self.normed = _bf16(rows, widths.hidden)
        self.wide = _bf16(rows, widths.wide)
        self.sum = torch.zeros(rows, widths.hidden)
        self.query = _bf16(rows, widths.query)
        self.inner = _bf16(rows, widths.inner)
        self.pool = torch.zeros(rows, widths.groups)
        self.pooled = _bf16(rows, widths.groups)
        self.low = _bf16(rows, ranks)

    def pointers(self) -> dict[str, int]:
        """The addresses, by the name of the field in `Step`."""
        return {name: value.data_ptr() for name, value in vars(self).items() if isinstance(value, Tensor)}


class HeadBuffers:
    """The buffers of the head for at most `rows` rows."""

    def __init__(self, hidden: int, vocabulary: int, blocks: int, rows: int) -> None:
        self.rows = rows
        self.input = _bf16(rows, hidden)
        self.logits = torch.zeros(rows, vocabulary)
        self.best = torch.zeros(rows)
        self.token = torch.zeros(rows, dtype=torch.int64)
        self.block_best = torch.zeros(rows, blocks)

    def pointers(self) -> dict[str, int]:
        """The addresses, by the name of the field in `Head`."""
        return {name: value.data_ptr() for name, value in vars(self).items() if isinstance(value, Tensor)}


def _bf16(rows: int, width: int) -> Tensor:
    return torch.zeros(rows, width, dtype=torch.bfloat16)
