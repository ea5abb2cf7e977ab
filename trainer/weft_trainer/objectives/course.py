"""What an objective adds to a run besides its loss: its examples, its batches, its score, and who else takes part.

`train` asks for the course of a configuration and knows no objective by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from weft_adapters.base.load import StoredBase
from weft_registry.home import Home
from weft_trainer.config.objective import DistillOptions, DpoOptions
from weft_trainer.config.run import TrainConfig
from weft_trainer.data.batches import Batch, PackedBatches, StateBatches, TokenBatches
from weft_trainer.data.dataset import Example
from weft_trainer.modeling.adapted import AdaptedModel, BareModel
from weft_trainer.modeling.base import TrainingBase
from weft_trainer.modeling.objective import CrossEntropy, Objective
from weft_trainer.objectives.distill import Distillation, Targets, TaughtBatches, cache_targets
from weft_trainer.objectives.dpo import Dpo, PairBatches, completion_logps, score_pairs
from weft_trainer.objectives.score import Score, score
from weft_trainer.objectives.teacher import Teacher, find_teacher
from weft_trainer.progress import Reporter

Source: TypeAlias = TokenBatches | StateBatches
MakeBatch: TypeAlias = Callable[[Sequence[int]], Batch]
Rows: TypeAlias = Sequence[Sequence[int]]


class Course(Protocol):
    """One run's. `check_room`, `before` and `begin` are called once each, in this order; the others after them."""

    def check_room(self, examples: Sequence[Example]) -> None:
        """Raises `ConfigError` where somebody who takes part cannot read one of the training examples."""
        ...

    def before(self, base: TrainingBase, sources: Sequence[Source], scratch: Path, report: Reporter) -> None:
        """Looks at the base before it wears anything. `sources` make the batches of the training examples, and of
        the held-out ones if there are any; `scratch` outlives the run."""
        ...

    def begin(self, model: AdaptedModel, sources: Sequence[Source], report: Reporter) -> Objective:
        """Looks at the model as training begins, and gives its objective."""
        ...

    def count(self, examples: Sequence[Example]) -> int:
        """How many items the training examples are that batches are made of."""
        ...

    def batches(self, source: Source, rows: Rows | None) -> MakeBatch:
        """What makes the training batches, in rows of several examples where `rows` says so."""
        ...

    def score(
        self, model: AdaptedModel, source: Source, examples: Sequence[Example], report: Reporter, groups: Sequence[str]
    ) -> Score:
        """Of the held-out examples."""
        ...

    def provenance(self) -> Mapping[str, Any]:
        """What an artifact's manifest says of it, besides the configuration."""
        ...


def course_of(config: TrainConfig, stored: StoredBase, home: Home | None, device: torch.device) -> Course:
    """The course of a configuration. Raises what finding its teacher raises; computes nothing yet."""
    options = config.objective
    if isinstance(options, DistillOptions):
        teacher = find_teacher(options, config, stored, home or Home.from_environment())
        return DistillCourse(options, teacher, config.training.dtype, device)
    return DpoCourse(options) if isinstance(options, DpoOptions) else CompletionCourse()


class CompletionCourse:
    """Cross entropy: nobody else takes part."""

    def check_room(self, examples: Sequence[Example]) -> None:
        """See `Course.check_room`."""

    def before(self, base: TrainingBase, sources: Sequence[Source], scratch: Path, report: Reporter) -> None:
        """See `Course.before`."""

    def begin(self, model: AdaptedModel, sources: Sequence[Source], report: Reporter) -> Objective:
        """See `Course.begin`."""
        return CrossEntropy()

    def count(self, examples: Sequence[Example]) -> int:
        """See `Course.count`."""
        return len(examples)

    def batches(self, source: Source, rows: Rows | None) -> MakeBatch:
        """See `Course.batches`."""
        return source if rows is None else PackedBatches(source, rows)

    def score(
        self, model: AdaptedModel, source: Source, examples: Sequence[Example], report: Reporter, groups: Sequence[str]
    ) -> Score:
        """See `Course.score`."""
        return score(model, source, examples, report, groups=groups)

    def provenance(self) -> Mapping[str, Any]:
        """See `Course.provenance`."""
        return {}


class DistillCourse(CompletionCourse):
    """A teacher's soft targets beside the cross entropy; scored by the cross entropy, as the student will be used.

    Owns the teacher, or what it said of the training examples.
    """

    def __init__(self, options: DistillOptions, teacher: Teacher, dtype: str, device: torch.device) -> None:
        self._options, self._teacher, self._dtype, self._device = options, teacher, dtype, device
        self._model: AdaptedModel | None = None
        self._targets: Targets | None = None
        self._tokens: TokenBatches | None = None

    def check_room(self, examples: Sequence[Example]) -> None:
        """See `Course.check_room`: the teacher reads them too."""
        self._teacher.check_room(max(len(example.ids) for example in examples))

    def before(self, base: TrainingBase, sources: Sequence[Source], scratch: Path, report: Reporter) -> None:
        """See `Course.before`: loads the teacher, and lets it speak if its targets are kept."""
        options, source = self._options, sources[0]
        self._tokens = TokenBatches(source.examples, self._teacher.pad)
        teacher = self._teacher.load(getattr(torch, self._dtype), self._device)
        report.message(f"teacher: {self._teacher.describe()}")
        if options.top_k is None:
            self._model = teacher
            return
        self._targets = cache_targets(
            teacher, source.examples, self._teacher.pad, options.top_k, options.temperature, scratch, report
        )

    def begin(self, model: AdaptedModel, sources: Sequence[Source], report: Reporter) -> Objective:
        """See `Course.begin`."""
        return Distillation(self._options.temperature, self._options.weight, self._model)

    def batches(self, source: Source, rows: Rows | None) -> MakeBatch:
        """See `Course.batches`."""
        assert self._tokens is not None, "before came first"
        tokens: MakeBatch = self._tokens if rows is None else PackedBatches(self._tokens, rows)
        return TaughtBatches(super().batches(source, rows), tokens, self._targets, rows)

    def provenance(self) -> Mapping[str, Any]:
        """See `Course.provenance`."""
        said: dict[str, Any] = {"objective": {"kind": "distill", "teacher": self._teacher.provenance()}}
        if self._teacher.manifest is not None:
            # What it knows comes from there: `weft list --children-of` finds it, and `weft show` names it.
            said["parent_version"] = self._teacher.manifest.digest()
        return said


class DpoCourse:
    """Pairs of answers beside a reference. Owns what the reference says of them."""

    def __init__(self, options: DpoOptions) -> None:
        self._options = options
        self._dpo = Dpo(options.beta, options.label_smoothing)
        self._reference: list[Tensor] = []

    def check_room(self, examples: Sequence[Example]) -> None:
        """See `Course.check_room`: the reference is the base, or the adapter as it starts."""

    def before(self, base: TrainingBase, sources: Sequence[Source], scratch: Path, report: Reporter) -> None:
        """See `Course.before`."""
        if self._options.reference == "base":
            self._refer(BareModel(base), sources, report)

    def begin(self, model: AdaptedModel, sources: Sequence[Source], report: Reporter) -> Objective:
        """See `Course.begin`."""
        if self._options.reference == "start":
            self._refer(model, sources, report)
        return self._dpo

    def count(self, examples: Sequence[Example]) -> int:
        """See `Course.count`: pairs."""
        return len(examples) // 2

    def batches(self, source: Source, rows: Rows | None) -> MakeBatch:
        """See `Course.batches`."""
        assert rows is None, "pairs are neither packed nor mixed"
        return PairBatches(source, self._reference[0])

    def score(
        self, model: AdaptedModel, source: Source, examples: Sequence[Example], report: Reporter, groups: Sequence[str]
    ) -> Score:
        """See `Course.score`."""
        return score_pairs(model, self._dpo, PairBatches(source, self._reference[1]), examples, report, groups[::2])

    def provenance(self) -> Mapping[str, Any]:
        """See `Course.provenance`."""
        return {}

    def _refer(self, model: AdaptedModel, sources: Sequence[Source], report: Reporter) -> None:
        for source, name in zip(sources, ("training", "held-out"), strict=False):
            found = completion_logps(model, source, source.examples, report, f"reference, {name} pairs")
            self._reference.append(found)
