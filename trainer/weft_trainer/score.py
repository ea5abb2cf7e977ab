"""Loss and exact match by teacher forcing: one forward pass, no generation.

Greedy decoding reproduces the reference completion, EOS included, if and only if the most likely token IS the
reference token at every completion position: as long as it has been, the model has read exactly the reference so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from weft_trainer.adapted import AdaptedModel
from weft_trainer.batches import Batch
from weft_trainer.data import Example
from weft_trainer.progress import Reporter

SCORE_BATCH = 32


@dataclass(frozen=True)
class Score:
    """What a model achieves on some examples."""

    loss: float
    """Mean cross entropy per completion token, in nats."""
    exact_match: float
    """Share of examples whose whole completion greedy decoding reproduces."""
    examples: int

    def describe(self) -> str:
        """One line for people."""
        return f"loss {self.loss:.4f}, exact match {self.exact_match:.1%} of {self.examples}"


@torch.no_grad()
def score(
    model: AdaptedModel,
    make_batch: Callable[[Sequence[int]], Batch],
    examples: Sequence[Example],
    report: Reporter,
    label: str = "evaluating",
    batch_size: int = SCORE_BATCH,
) -> Score:
    """Scores the model on `examples`, which `make_batch` turns into batches by their indices."""
    was_training = model.training
    model.eval()
    # Neighbours by length share a batch, so that little of it is padding.
    order = sorted(range(len(examples)), key=lambda index: (len(examples[index].ids), index))
    loss_sum, tokens, exact = 0.0, 0, 0
    with report.task(label, len(order)) as task:
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            batch = {key: value.to(model.base.device) for key, value in make_batch(indices).items()}
            logits_CV, reference_C = model.completion_logits(batch)
            loss_sum += float(F.cross_entropy(logits_CV.float(), reference_C, reduction="sum"))
            tokens += len(reference_C)
            hits: Tensor = logits_CV.argmax(-1) == reference_C
            lengths = [examples[index].completion_length for index in indices]
            exact += sum(bool(part.all()) for part in torch.split(hits, lengths))
            task.advance(len(indices), f"exact {exact}")
    model.train(was_training)
    return Score(loss_sum / tokens, exact / len(order), len(order))
