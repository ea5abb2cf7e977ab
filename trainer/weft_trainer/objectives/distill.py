"""Distillation: soft targets of a teacher, for any method (Hinton et al. 2015, arXiv:1503.02531).

At every position that predicts a completion token, with teacher logits v, student logits z, temperature T, weight w:

    p = softmax(v / T)    q = softmax(z / T)    loss = (1 - w) CE(z, token) + w T^2 sum_i p_i (log p_i - log q_i)

T^2 keeps the divergence's gradient, which falls with 1 / T^2, beside that of the cross entropy (section 2). With the k
most likely tokens alone, all others are one token of their summed probability, in p as in q: a lower bound of the
divergence, zero exactly where teacher and student agree on all k and on the rest.

Shapes: C completion tokens of the batch, V vocabulary, k tokens kept, N completion tokens of all examples.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from weft_trainer.data.batches import Batch, TokenBatches
from weft_trainer.data.dataset import Example
from weft_trainer.modeling.adapted import AdaptedModel
from weft_trainer.modeling.cached_layers import allocate
from weft_trainer.modeling.objective import completion_tokens
from weft_trainer.progress import Reporter

TEACHER_INPUTS = "teacher_input_ids"
TOP_IDS, TOP_LOGPS, REST_LOGP = "teacher_top_ids", "teacher_top_logps", "teacher_rest_logp"
_BATCH = 16


@dataclass(frozen=True, eq=False)
class Distillation:
    """The objective. Holds the teacher where its distribution is not in the batch; trains nothing of it."""

    temperature: float
    weight: float
    teacher: AdaptedModel | None
    """None: the batch has `TOP_IDS` (C, k), `TOP_LOGPS` (C, k) and `REST_LOGP` (C,)."""

    def items(self, batch: Mapping[str, Tensor]) -> int:
        """Completion tokens."""
        return completion_tokens(batch)

    def total(self, logits_CV: Tensor, reference_C: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """See `Objective.total`."""
        student_CV = logits_CV.float()
        if self.teacher is None:
            top = Top(batch[TOP_IDS].long(), batch[TOP_LOGPS], batch[REST_LOGP])
            soft = top_divergence(student_CV, top, self.temperature).sum()
        else:
            soft = divergence(student_CV, teacher_logits(self.teacher, batch), self.temperature).sum()
        loss = self.weight * self.temperature**2 * soft
        if self.weight == 1:
            return loss
        return (1 - self.weight) * F.cross_entropy(student_CV, reference_C, reduction="sum") + loss


@torch.no_grad()
def teacher_logits(teacher: AdaptedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """(C, V) in float32, in the order of `AdaptedModel.completion_logits`."""
    own = {key: batch[key] for key in ("attention_mask", "labels", "segment_ids", "position_ids") if key in batch}
    ids_BT = batch[TEACHER_INPUTS] if TEACHER_INPUTS in batch else batch["input_ids"]
    return teacher.completion_logits({"input_ids": ids_BT, **own})[0].float()


def divergence(student_CV: Tensor, teacher_CV: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) at each position, (C,), of logits (C, V) in float32."""
    p_CV = F.log_softmax(teacher_CV / temperature, dim=-1)
    q_CV = F.log_softmax(student_CV / temperature, dim=-1)
    return (p_CV.exp() * (p_CV - q_CV)).sum(-1)


@dataclass(frozen=True, eq=False)
class Top:
    """A distribution by its k most likely tokens."""

    ids_Ck: Tensor
    """int64."""
    logps_Ck: Tensor
    """Their log-probabilities, float32."""
    rest_C: Tensor
    """The log-probability of all others together."""

    @classmethod
    def of(cls, logits_CV: Tensor, k: int, temperature: float) -> Top:
        """The distribution of logits (C, V) in float32 at a temperature; k is less than V."""
        scaled_CV = logits_CV / temperature
        ids_Ck = scaled_CV.topk(k, dim=-1).indices
        return cls(ids_Ck, *_split(scaled_CV, ids_Ck))


def top_divergence(student_CV: Tensor, teacher: Top, temperature: float) -> Tensor:
    """KL(teacher || student) at each position, (C,), over k tokens and the rest as one; logits in float32."""
    logps_Ck, rest_C = _split(student_CV / temperature, teacher.ids_Ck)
    kept_C = (teacher.logps_Ck.exp() * (teacher.logps_Ck - logps_Ck)).sum(-1)
    return kept_C + teacher.rest_C.exp() * (teacher.rest_C - rest_C)


def _split(logits_CV: Tensor, ids_Ck: Tensor) -> tuple[Tensor, Tensor]:
    """(log-probabilities of these tokens (C, k), of all others together (C,))."""
    whole_C1 = logits_CV.logsumexp(-1, keepdim=True)
    # Summed over the others, not as 1 minus the kept: that is no number where the kept have nearly all.
    others_CV = logits_CV.scatter(-1, ids_Ck, float("-inf"))
    return logits_CV.gather(-1, ids_Ck) - whole_C1, others_CV.logsumexp(-1) - whole_C1[:, 0]


@dataclass(frozen=True, eq=False)
class Targets:
    """The teacher's distributions of all examples. Owns nothing: the tensors are the cache's."""

    ids_Nk: Tensor
    """int32."""
    logps_Nk: Tensor
    rest_N: Tensor
    offsets: Sequence[int]
    """Where each example's completion tokens begin."""

    def of(self, examples: Sequence[int]) -> Batch:
        """Those of these examples, one after another."""
        spans = [range(self.offsets[i], self.offsets[i + 1]) for i in examples]
        at = torch.tensor([n for span in spans for n in span])
        return {TOP_IDS: self.ids_Nk[at], TOP_LOGPS: self.logps_Nk[at], REST_LOGP: self.rest_N[at]}


def cache_targets(
    teacher: AdaptedModel,
    examples: Sequence[Example],
    pad: int,
    k: int,
    temperature: float,
    scratch: Path,
    report: Reporter,
) -> Targets:
    """The teacher's k most likely tokens at every completion token of `examples`, computed once.

    More than 2 GiB go to memory-mapped files in `scratch`, which must outlive the result.
    """
    offsets = [0, *itertools.accumulate(example.completion_length for example in examples)]
    total = offsets[-1]
    found = Targets(
        allocate(total, k, torch.int32, scratch / "teacher-ids"),
        allocate(total, k, torch.float32, scratch / "teacher-logps"),
        torch.empty(total),
        offsets,
    )
    make_batch = TokenBatches(examples, pad)
    order = sorted(range(len(examples)), key=lambda index: (len(examples[index].ids), index))
    with report.task("teacher, once", len(order)) as task:
        for start in range(0, len(order), _BATCH):
            indices = order[start : start + _BATCH]
            batch = {key: value.to(teacher.base.device) for key, value in make_batch(indices).items()}
            top = Top.of(teacher_logits(teacher, batch), k, temperature)
            at = torch.tensor([n for i in indices for n in range(offsets[i], offsets[i + 1])])
            found.ids_Nk[at] = top.ids_Ck.int().cpu()
            found.logps_Nk[at] = top.logps_Ck.cpu()
            found.rest_N[at] = top.rest_C.cpu()
            task.advance(len(indices))
    return found


@dataclass(frozen=True, eq=False)
class TaughtBatches:
    """Makes a student's batches with what the teacher needs, or with what it said."""

    source: Callable[[Sequence[int]], Batch]
    """The student's."""
    tokens: Callable[[Sequence[int]], Batch]
    """The same rows in tokens, where the student gets states."""
    targets: Targets | None
    """None: the teacher runs at every step."""
    rows: Sequence[Sequence[int]] | None = None
    """Which examples each row is made of; None: each of one."""

    def __call__(self, indices: Sequence[int]) -> Batch:
        """The rows of these numbers."""
        batch = self.source(indices)
        if self.targets is not None:
            rows = self.rows
            examples = list(indices) if rows is None else [example for i in indices for example in rows[i]]
            return batch | self.targets.of(examples)
        return batch if "input_ids" in batch else batch | {TEACHER_INPUTS: self.tokens(indices)["input_ids"]}
