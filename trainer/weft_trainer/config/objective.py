"""What a run optimizes: the `objective` block of a training configuration, one dataclass per kind. No torch.

objective: {kind: distill, teacher: smol-large, temperature: 2, weight: 0.5}
objective: {kind: dpo, beta: 0.1}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from weft_registry.names import nearest
from weft_trainer.config import strict
from weft_trainer.config.data import DataConfig
from weft_trainer.config.strict import ConfigError


@dataclass(frozen=True)
class CompletionOptions:
    """`objective: {kind: completion}`, the default: cross entropy over the completions' tokens."""

    kind: str = field(default="completion", metadata={"choices": ("completion",)})
    """Decides what else the block may say."""


@dataclass(frozen=True)
class DistillOptions:
    """`objective: {kind: distill}`: the cross entropy, and the divergence from a teacher's soft targets (Hinton et al.
    2015, arXiv:1503.02531)."""

    teacher: str
    """Who teaches: a stored base ("smol-large"), or a stored base and an artifact directory that it wears
    ("smol+runs/topic"). It has the student's tokenizer and vocabulary."""
    kind: str = field(default="distill", metadata={"choices": ("distill",)})
    """Decides what else the block may say."""
    temperature: float = field(default=2.0, metadata={"above": 0})
    """T: logits of both are divided by it, so that what the teacher thinks of unlikely tokens counts for more."""
    weight: float = field(default=0.5, metadata={"above": 0, "most": 1})
    """w: the loss is (1 - w) of the cross entropy and w T^2 of the divergence."""
    top_k: int | None = field(default=None, metadata={"least": 1})
    """Compute the teacher's distribution once per example, and keep its k most likely tokens and the mass of all
    others. None: the teacher runs beside the student at every step, over the whole vocabulary."""
    merged: bool = False
    """Merge the teacher's artifact into its base, as a server does: faster, where its kind can be merged."""

    def __post_init__(self) -> None:
        base, artifact = worn(self.teacher)
        if not base or (artifact is None and "+" in self.teacher):
            raise ConfigError("objective.teacher", f"{self.teacher!r} is no BASE or BASE+ARTIFACT")
        if self.merged and artifact is None:
            raise ConfigError("objective.merged", f"{self.teacher!r} wears no artifact that could be merged")


@dataclass(frozen=True)
class DpoOptions:
    """`objective: {kind: dpo}`: direct preference optimization over pairs of answers (Rafailov et al. 2023,
    arXiv:2305.18290)."""

    kind: str = field(default="dpo", metadata={"choices": ("dpo",)})
    """Decides what else the block may say."""
    beta: float = field(default=0.1, metadata={"above": 0})
    """How strongly the model is held to the reference: the smaller, the further it may go."""
    label_smoothing: float = field(default=0.0, metadata={"least": 0, "most": 0.49})
    """Share of the pairs that are assumed to be labelled the wrong way round (conservative DPO)."""
    reference: str | None = field(default=None, metadata={"choices": ("base", "start")})
    """"base": the base without the adapter. "start": with the adapter as training begins, which is another model where
    the run begins at an adapter, or the method does not begin at the base (`init: loftq`, prompts, prefixes). None:
    "start" where the run begins at an adapter (`start`), "base" otherwise."""


ObjectiveOptions: TypeAlias = CompletionOptions | DistillOptions | DpoOptions

OBJECTIVE_OPTIONS: Mapping[str, type[ObjectiveOptions]] = {
    "completion": CompletionOptions,
    "distill": DistillOptions,
    "dpo": DpoOptions,
}


def worn(text: str) -> tuple[str, Path | None]:
    """(base, artifact directory) of a teacher, "BASE" or "BASE+ARTIFACT"; the artifact is None where there is none."""
    base, _, artifact = text.partition("+")
    return base, strict.path_of(artifact, "objective.teacher") if artifact else None


def read_objective(block: Any, start: str | None = None) -> ObjectiveOptions:
    """The `objective` block of a run that begins at the adapter `start`, or at none; None is the default. Raises
    `ConfigError` naming the key."""
    if block is None:
        return CompletionOptions()
    if not isinstance(block, Mapping):
        raise ConfigError("objective", f"expected a mapping with a kind, found {block!r}")
    kind = block.get("kind")
    options = OBJECTIVE_OPTIONS.get(kind) if isinstance(kind, str) else None
    if options is None:
        near = nearest(str(kind), OBJECTIVE_OPTIONS)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise ConfigError("objective.kind", f"{kind!r} is not one of {', '.join(OBJECTIVE_OPTIONS)}{hint}")
    objective = strict.read(options, block, "objective")
    if isinstance(objective, DpoOptions) and objective.reference is None:
        return replace(objective, reference="base" if start is None else "start")
    return objective


def check_objective(objective: ObjectiveOptions, data: DataConfig) -> None:
    """Raises `ConfigError` for settings of the data that pairs of answers cannot have."""
    if not isinstance(objective, DpoOptions):
        return
    if data.packing:
        raise ConfigError("data.packing", "a pair is two rows of a batch and is not packed; leave it out with dpo")
    if data.mixing_maximum is not None:
        raise ConfigError("data.mixing_maximum", "pairs of several files are not mixed; leave it out with dpo")
    if data.format is not None:
        raise ConfigError("data.format", "with dpo a record is a pair, prompt, chosen and rejected; leave it out")
    if data.loss_on != "all":
        raise ConfigError("data.loss_on", "with dpo the answers of a pair decide; leave it out")
    for key, datasets in (("train", data.training_sets), ("eval", data.evaluation_sets)):
        for index, dataset in enumerate(datasets):
            for name in ("weight", "format", "templates"):
                if getattr(dataset, name) is not None:
                    raise ConfigError(f"data.{key}[{index}].{name}", "without effect on pairs; leave it out with dpo")
