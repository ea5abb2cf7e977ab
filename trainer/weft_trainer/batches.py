"""Examples as padded tensors, from their tokens or from the states that enter the first adapted layer.

Padding is on the RIGHT: positions start at 0 as they do in a server, also behind a prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weft_trainer.data import Example

IGNORE = -100
"""The label of a position that the loss does not count (prompt and padding); torch's own convention."""

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class TokenBatches:
    """Makes batches of token ids."""

    examples: Sequence[Example]
    pad: int

    def __call__(self, indices: Sequence[int]) -> Batch:
        """input_ids (B, T), attention_mask (B, T), labels (B, T): the completion's ids, `IGNORE` elsewhere."""
        chosen = [self.examples[i] for i in indices]
        length = max(len(example.ids) for example in chosen)
        ids_BT = torch.full((len(chosen), length), self.pad, dtype=torch.int64)
        for row, example in enumerate(chosen):
            ids_BT[row, : len(example.ids)] = torch.tensor(example.ids)
        return {"input_ids": ids_BT, **_mask_and_labels(chosen, length)}


@dataclass(frozen=True, eq=False)
class StateBatches:
    """Makes batches of cached states. Owns nothing: the states are the cache's."""

    examples: Sequence[Example]
    states_ND: Tensor
    """The states of all examples, one after another."""
    offsets: Sequence[int]
    """Where each example begins in `states_ND`."""

    def __call__(self, indices: Sequence[int]) -> Batch:
        """inputs_embeds (B, T, D), zero where padded, and the rest as `TokenBatches` has it."""
        chosen = [self.examples[i] for i in indices]
        length = max(len(example.ids) for example in chosen)
        states_BTD = self.states_ND.new_zeros(len(chosen), length, self.states_ND.shape[1])
        for row, (index, example) in enumerate(zip(indices, chosen, strict=True)):
            start = self.offsets[index]
            states_BTD[row, : len(example.ids)] = self.states_ND[start : start + len(example.ids)]
        return {"inputs_embeds": states_BTD, **_mask_and_labels(chosen, length)}


def _mask_and_labels(examples: Sequence[Example], length: int) -> Batch:
    mask_BT = torch.zeros(len(examples), length, dtype=torch.int64)
    labels_BT = torch.full((len(examples), length), IGNORE, dtype=torch.int64)
    for row, example in enumerate(examples):
        mask_BT[row, : len(example.ids)] = 1
        answer = slice(example.prompt_length, len(example.ids))
        labels_BT[row, answer] = torch.tensor(example.ids[answer])
    return {"attention_mask": mask_BT, "labels": labels_BT}
