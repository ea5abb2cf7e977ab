"""What a forward pass sums up: the loss of the objective, from the logits that predict completion tokens.

The loss belongs to the objective and not to the method: every `AdaptedModel` has one. Shapes as in
`weft_trainer.modeling.base`: C completion tokens of the whole batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor
from torch.nn import functional as F

from weft_trainer.data.batches import IGNORE


class Objective(Protocol):
    """A sum over the items of a batch. Over several batches it is divided by the items of all of them."""

    def items(self, batch: Mapping[str, Tensor]) -> int:
        """How many terms the sum has: tokens, or pairs."""
        ...

    def total(self, logits_CV: Tensor, reference_C: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """The sum, in float32, with its gradient. `logits_CV` and `reference_C` as
        `AdaptedModel.completion_logits` gives them for `batch`."""
        ...


class CrossEntropy:
    """The negative log-likelihood of the completion tokens."""

    def items(self, batch: Mapping[str, Tensor]) -> int:
        """Completion tokens."""
        return completion_tokens(batch)

    def total(self, logits_CV: Tensor, reference_C: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """See `Objective.total`."""
        return F.cross_entropy(logits_CV.float(), reference_C, reduction="sum")


def completion_tokens(batch: Mapping[str, Tensor]) -> int:
    """C of a batch."""
    return int((batch["labels"][:, 1:] != IGNORE).sum())
