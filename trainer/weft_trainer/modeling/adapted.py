"""A base wearing the adapter that is being trained: what the training loop and the scoring see of any method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from weft_trainer.config.run import TrainingConfig
from weft_trainer.data.batches import IGNORE
from weft_trainer.modeling.base import TrainingBase
from weft_trainer.modeling.objective import CrossEntropy, Objective


@dataclass(frozen=True, eq=False)
class Outcome:
    """What becomes of a trained model in an artifact."""

    params: Any
    """The kind's parameters (`weft_registry.kinds`)."""
    tensors: Mapping[str, Tensor]
    """As `AdaptedModel.export` gives them."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """How they came about, where they are not what was trained."""
    exact: bool = True
    """Whether the adapter does what the trained model does; if not, it is scored besides."""
    read: Callable[[str], Tensor] | None = None
    """The trained model's weights by the names that transformers gives them, where they themselves were trained."""


class AdaptedModel(nn.Module, ABC):
    """A frozen base and a trainable adapter. Subclasses own the adapter's parameters, in float32."""

    accepts_loss_kwargs = True
    """Tells transformers' Trainer to pass `num_items_in_batch`: with gradient accumulation the loss is then the mean
    over ALL items of the step (completion tokens, or pairs), not the mean of the batches' means."""

    def __init__(self, base: TrainingBase) -> None:
        super().__init__()
        self.base = base
        self.objective: Objective = CrossEntropy()
        """What `forward` sums up."""

    @abstractmethod
    def hidden(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The adapted model's states after the last norm: (B, T, D)."""

    @abstractmethod
    def export(self) -> dict[str, Tensor]:
        """The adapter's tensors as an artifact stores them: PEFT's names, the base's layer numbers, float32."""

    @abstractmethod
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `export`."""

    def outcome(self, params: Any) -> Outcome:
        """What the artifact holds, of a method whose parameters are `params`. Raises `PreconditionError` where training
        made nothing that an artifact could hold."""
        return Outcome(params, self.export())

    def optimizer(self, training: TrainingConfig) -> Optimizer | None:
        """The method's own optimizer; None where `training.optimizer` decides."""
        return None

    def completion_logits(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(logits (C, V), reference tokens (C,)) at the positions that predict a completion token, in batch order.

        Only there: with a large vocabulary the head would otherwise cost more than several layers.
        """
        labels_BT = batch["labels"][:, 1:]
        wanted_BT = labels_BT != IGNORE
        return self.base.logits(self.hidden(batch)[:, :-1][wanted_BT]), labels_BT[wanted_BT]

    def forward(self, *, num_items_in_batch: Tensor | int | None = None, **batch: Tensor) -> dict[str, Tensor]:
        """{"loss"}: the objective's sum over its items (by default the completion tokens' cross entropy), in float32,
        divided by how many there are (in the whole step if `num_items_in_batch` says so)."""
        logits_CV, reference_C = self.completion_logits(batch)
        total = self.objective.total(logits_CV, reference_C, batch)
        return {"loss": total / (num_items_in_batch if num_items_in_batch is not None else self.objective.items(batch))}

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters under training, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}


class BareModel(AdaptedModel):
    """The base with no adapter, or with a merged one: for scoring."""

    def hidden(self, batch: Mapping[str, Tensor]) -> Tensor:
        """See `AdaptedModel.hidden`."""
        return self.base.hidden(batch)

    def export(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Nothing to restore."""


def load_exactly(parameters: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Copies `tensors` into `parameters`; the names must be the same ones (`KeyError` otherwise)."""
    if parameters.keys() != tensors.keys():
        raise KeyError(f"different tensors: {sorted(parameters.keys() ^ tensors.keys())[:5]}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
