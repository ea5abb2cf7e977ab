"""Direct preference optimization: of two answers, the chosen one more likely (Rafailov et al. 2023, arXiv:2305.18290).

For a prompt x with a chosen answer y_c and a rejected one y_r (equation 7):

    r(y)  = beta (log pi(y | x) - log ref(y | x))            the reward that the model implies
    m     = r(y_c) - r(y_r)                                  its margin
    loss  = -(1 - e) log sigmoid(m) - e log sigmoid(-m)      e: label smoothing, 0 in the paper

log pi(y | x) is the sum over the answer's tokens, end of sequence included. The reference's are computed once.

Shapes: P pairs, R = 2 P rows of a batch, the chosen ones first; C completion tokens of the batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from weft_trainer.data.batches import IGNORE, Batch
from weft_trainer.data.dataset import Example
from weft_trainer.modeling.adapted import AdaptedModel
from weft_trainer.objectives.score import Part, Score
from weft_trainer.progress import Reporter

REFERENCE = "reference_logps"
_BATCH = 32


@dataclass(frozen=True)
class Dpo:
    """The objective."""

    beta: float
    label_smoothing: float = 0.0

    def items(self, batch: Mapping[str, Tensor]) -> int:
        """Pairs."""
        return len(batch["labels"]) // 2

    def total(self, logits_CV: Tensor, reference_C: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """See `Objective.total`. The batch has `REFERENCE` (R,) besides."""
        return self.losses(self.margins(logits_CV, reference_C, batch)).sum()

    def margins(self, logits_CV: Tensor, reference_C: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """m of every pair, (P,), in float32."""
        rewards_R = self.beta * (row_logps(logits_CV, reference_C, batch["labels"]) - batch[REFERENCE])
        chosen_P, rejected_P = rewards_R.chunk(2)
        return chosen_P - rejected_P

    def losses(self, margins_P: Tensor) -> Tensor:
        """The loss of every pair, (P,)."""
        smoothing = self.label_smoothing
        return -(1 - smoothing) * F.logsigmoid(margins_P) - smoothing * F.logsigmoid(-margins_P)


def row_logps(logits_CV: Tensor, reference_C: Tensor, labels_BT: Tensor) -> Tensor:
    """The log-probability of every row's completion, (B,), in float32: the sum over its tokens."""
    token_C = -F.cross_entropy(logits_CV.float(), reference_C, reduction="none")
    row_C = (labels_BT[:, 1:] != IGNORE).nonzero()[:, 0]
    return token_C.new_zeros(len(labels_BT)).index_add(0, row_C, token_C)


@torch.no_grad()
def completion_logps(
    model: AdaptedModel,
    make_batch: Callable[[Sequence[int]], Batch],
    examples: Sequence[Example],
    report: Reporter,
    label: str,
) -> Tensor:
    """The log-probability of every example's completion, (N,), in float32, without dropout. The examples are those of
    pairs, which are what `report` hears of."""
    was_training = model.training
    model.eval()
    found_N = torch.empty(len(examples))
    order = sorted(range(len(examples)), key=lambda index: (len(examples[index].ids), index))
    with report.task(label, len(order) // 2) as task:
        for start in range(0, len(order), _BATCH):
            indices = order[start : start + _BATCH]
            batch = {key: value.to(model.base.device) for key, value in make_batch(indices).items()}
            logits_CV, reference_C = model.completion_logits(batch)
            found_N[indices] = row_logps(logits_CV, reference_C, batch["labels"]).cpu()
            # Always even: the batches are, and so are all examples together.
            task.advance(len(indices) // 2)
    model.train(was_training)
    return found_N


@dataclass(frozen=True, eq=False)
class PairBatches:
    """Makes batches of pairs. Pair i is the examples 2 i, chosen, and 2 i + 1, rejected."""

    source: Callable[[Sequence[int]], Batch]
    """Of examples."""
    reference_N: Tensor
    """The reference's log-probability of every example's completion."""

    def __call__(self, indices: Sequence[int]) -> Batch:
        """The pairs of these numbers: all their chosen rows, then all their rejected ones."""
        rows = [2 * i for i in indices] + [2 * i + 1 for i in indices]
        return {**self.source(rows), REFERENCE: self.reference_N[rows]}


@dataclass(frozen=True)
class PairScore(Score):
    """What a model achieves on some pairs: `loss` is the objective's mean, `exact_match` the share of the chosen
    answers that greedy decoding reproduces, `examples` counts pairs."""

    reward_accuracy: float = field(kw_only=True)
    """Share of the pairs whose chosen answer has the higher reward."""
    reward_margin: float = field(kw_only=True)
    """Mean of the chosen answers' rewards less the rejected ones'."""

    def figures(self) -> dict[str, float]:
        """See `Score.figures`."""
        return {**super().figures(), "reward_accuracy": self.reward_accuracy, "reward_margin": self.reward_margin}

    def headline(self) -> str:
        """See `Score.headline`."""
        return (
            f"loss {self.loss:.4f}, chosen preferred in {self.reward_accuracy:.1%} of {self.examples} pairs, reward "
            f"margin {self.reward_margin:.4f}"
        )


@torch.no_grad()
def score_pairs(
    model: AdaptedModel,
    objective: Dpo,
    make_batch: PairBatches,
    examples: Sequence[Example],
    report: Reporter,
    groups: Sequence[str] = (),
) -> PairScore:
    """Scores the model on the pairs that `examples` are. `groups` names the part of the score each pair belongs to."""
    was_training = model.training
    model.eval()
    count = len(examples) // 2
    order = sorted(range(count), key=lambda i: (max(len(examples[2 * i].ids), len(examples[2 * i + 1].ids)), i))
    margins_N, hits = torch.empty(count), [False] * count
    with report.task("evaluating", count) as task:
        for start in range(0, count, _BATCH // 2):
            indices = order[start : start + _BATCH // 2]
            batch = {key: value.to(model.base.device) for key, value in make_batch(indices).items()}
            logits_CV, reference_C = model.completion_logits(batch)
            margins_N[indices] = objective.margins(logits_CV, reference_C, batch).cpu()
            lengths = [examples[2 * i + side].completion_length for side in (0, 1) for i in indices]
            right = torch.split(logits_CV.argmax(-1) == reference_C, lengths)
            for index, chosen in zip(indices, right, strict=False):
                hits[index] = bool(chosen.all())
            task.advance(len(indices))
    model.train(was_training)
    losses_N = objective.losses(margins_N)

    def of(indices: Sequence[int], parts: tuple[Part, ...] = ()) -> PairScore:
        size = len(indices)
        return PairScore(
            float(losses_N[indices].double().mean()),
            sum(hits[i] for i in indices) / size,
            size,
            parts,
            reward_accuracy=float((margins_N[indices] > 0).double().mean()),
            reward_margin=float(margins_N[indices].double().mean()),
        )

    names = list(dict.fromkeys(groups))
    parts = tuple(Part(name, of([i for i in range(count) if groups[i] == name])) for name in names)
    return of(list(range(count)), parts)
