"""Loss and exact match by teacher forcing: one forward pass, no generation.

Greedy decoding reproduces the reference completion, EOS included, if and only if the most likely token IS the
reference token at every completion position: as long as it has been, the model has read exactly the reference so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from weft_trainer.data.batches import Batch
from weft_trainer.data.dataset import Example
from weft_trainer.modeling.adapted import AdaptedModel
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
    parts: tuple[Part, ...] = ()
    """The same by file and templates, where there are several of them."""

    def figures(self) -> dict[str, float]:
        """What is measured, by the names that logs and manifests have."""
        return {"loss": self.loss, "exact_match": self.exact_match}

    def headline(self) -> str:
        """One line for people."""
        return f"loss {self.loss:.4f}, exact match {self.exact_match:.1%} of {self.examples}"

    def describe(self) -> str:
        """One line for people, and one for each part."""
        lines = [self.headline()]
        lines += [f"{part.name}: {part.score.describe()}" for part in self.parts]
        return "\n  ".join(lines)


@dataclass(frozen=True)
class Part:
    """The score of some of the examples."""

    name: str
    """The file, with which of its templates: "nli.jsonl (unseen templates)"."""
    score: Score


@torch.no_grad()
def score(
    model: AdaptedModel,
    make_batch: Callable[[Sequence[int]], Batch],
    examples: Sequence[Example],
    report: Reporter,
    label: str = "evaluating",
    batch_size: int = SCORE_BATCH,
    groups: Sequence[str] = (),
) -> Score:
    """Scores the model on `examples`, which `make_batch` turns into batches by their indices.

    `groups` names the part of the score that each example belongs to; empty for a score without parts.
    """
    was_training = model.training
    model.eval()
    # Neighbours by length share a batch, so that little of it is padding.
    order = sorted(range(len(examples)), key=lambda index: (len(examples[index].ids), index))
    tallies = {name: _Tally() for name in dict.fromkeys(groups or ("",))}
    with report.task(label, len(order)) as task:
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            batch = {key: value.to(model.base.device) for key, value in make_batch(indices).items()}
            logits_CV, reference_C = model.completion_logits(batch)
            losses: Tensor = F.cross_entropy(logits_CV.float(), reference_C, reduction="none").double()
            hits: Tensor = logits_CV.argmax(-1) == reference_C
            lengths = [examples[index].completion_length for index in indices]
            parts = zip(indices, torch.split(losses, lengths), torch.split(hits, lengths), strict=True)
            for index, loss, hit in parts:
                tallies[groups[index] if groups else ""].add(float(loss.sum()), len(loss), bool(hit.all()))
            task.advance(len(indices), f"exact {sum(tally.exact for tally in tallies.values())}")
    model.train(was_training)
    whole = _Tally()
    for tally in tallies.values():
        whole.add(tally.loss_sum, tally.tokens, tally.exact, tally.examples)
    named = tuple(Part(name, tally.score()) for name, tally in tallies.items()) if groups else ()
    return replace(whole.score(), parts=named)


class _Tally:
    def __init__(self) -> None:
        self.loss_sum, self.tokens, self.exact, self.examples = 0.0, 0, 0, 0

    def add(self, loss_sum: float, tokens: int, exact: int, examples: int = 1) -> None:
        self.loss_sum, self.tokens = self.loss_sum + loss_sum, self.tokens + tokens
        self.exact, self.examples = self.exact + exact, self.examples + examples

    def score(self) -> Score:
        return Score(self.loss_sum / self.tokens, self.exact / self.examples, self.examples)
