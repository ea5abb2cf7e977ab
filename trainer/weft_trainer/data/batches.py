"""Examples as padded tensors, from their tokens or from the states that enter the first adapted layer.

Padding is on the RIGHT: positions start at 0 as they do in a server, also behind a prefix. Knows no attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from weft_trainer.data.dataset import Example

IGNORE = -100
"""The label of a position that the loss does not count (prompt and padding); torch's own convention."""

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class TokenBatches:
    """Makes batches of token ids."""

    key: ClassVar[str] = "input_ids"
    examples: Sequence[Example]
    pad: int

    def __call__(self, indices: Sequence[int]) -> Batch:
        """input_ids (B, T), attention_mask (B, T), labels (B, T): the completions' ids, `IGNORE` elsewhere."""
        return _plain_batch(self, indices)

    def empty(self, rows: int, length: int) -> Tensor:
        """(B, T) of padding."""
        return torch.full((rows, length), self.pad, dtype=torch.int64)

    def piece(self, index: int) -> Tensor:
        """One example's ids, (T,)."""
        return torch.tensor(self.examples[index].ids)


@dataclass(frozen=True, eq=False)
class StateBatches:
    """Makes batches of cached states. Owns nothing: the states are the cache's."""

    key: ClassVar[str] = "inputs_embeds"
    examples: Sequence[Example]
    states_ND: Tensor
    """The states of all examples, one after another."""
    offsets: Sequence[int]
    """Where each example begins in `states_ND`."""

    def __call__(self, indices: Sequence[int]) -> Batch:
        """inputs_embeds (B, T, D), zero where padded, and the rest as `TokenBatches` has it."""
        return _plain_batch(self, indices)

    def empty(self, rows: int, length: int) -> Tensor:
        """(B, T, D) of zeros."""
        return self.states_ND.new_zeros(rows, length, self.states_ND.shape[1])

    def piece(self, index: int) -> Tensor:
        """One example's states, (T, D)."""
        start = self.offsets[index]
        return self.states_ND[start : start + len(self.examples[index].ids)]


@dataclass(frozen=True)
class PackedBatches:
    """Makes batches whose rows are several examples, one after another, none of which sees another.

    As other batches, and besides: segment_ids (B, T), 1 for a row's first example, 2 for its second, 0 where padded;
    position_ids (B, T), which begin at 0 with each example. `weft_trainer.modeling.packed_attention` makes the
    mask from them.
    """

    source: TokenBatches | StateBatches
    rows: Sequence[Sequence[int]]
    """Which examples each row is made of."""

    def __call__(self, indices: Sequence[int]) -> Batch:
        """The rows of these numbers."""
        examples = self.source.examples
        chosen = [self.rows[i] for i in indices]
        length = max(sum(len(examples[i].ids) for i in row) for row in chosen)
        values = self.source.empty(len(chosen), length)
        segments_BT = torch.zeros(len(chosen), length, dtype=torch.int64)
        positions_BT = torch.zeros_like(segments_BT)
        labels_BT = torch.full_like(segments_BT, IGNORE)
        for b, row in enumerate(chosen):
            at = 0
            for number, index in enumerate(row, 1):
                example = examples[index]
                here = slice(at, at + len(example.ids))
                values[b, here] = self.source.piece(index)
                segments_BT[b, here] = number
                positions_BT[b, here] = torch.arange(len(example.ids))
                for start, end in example.spans:
                    labels_BT[b, at + start : at + end] = torch.tensor(example.ids[start:end])
                at += len(example.ids)
        return {
            self.source.key: values,
            "attention_mask": (segments_BT > 0).long(),
            "labels": labels_BT,
            "segment_ids": segments_BT,
            "position_ids": positions_BT,
        }


def _plain_batch(source: TokenBatches | StateBatches, indices: Sequence[int]) -> Batch:
    chosen = [source.examples[i] for i in indices]
    length = max(len(example.ids) for example in chosen)
    values = source.empty(len(chosen), length)
    for row, (index, example) in enumerate(zip(indices, chosen, strict=True)):
        values[row, : len(example.ids)] = source.piece(index)
    return {source.key: values, **_mask_and_labels(chosen, length)}


def _mask_and_labels(examples: Sequence[Example], length: int) -> Batch:
    mask_BT = torch.zeros(len(examples), length, dtype=torch.int64)
    labels_BT = torch.full((len(examples), length), IGNORE, dtype=torch.int64)
    for row, example in enumerate(examples):
        mask_BT[row, : len(example.ids)] = 1
        for start, end in example.spans:
            labels_BT[row, start:end] = torch.tensor(example.ids[start:end])
    return {"attention_mask": mask_BT, "labels": labels_BT}
