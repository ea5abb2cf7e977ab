"""A base wearing the adapter that is being trained: what the training loop and the scoring see of any method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from weft_trainer.batches import IGNORE
from weft_trainer.model import TrainingBase


class AdaptedModel(nn.Module, ABC):
    """A frozen base and a trainable adapter. Subclasses own the adapter's parameters, in float32."""

    accepts_loss_kwargs = True
    """Tells transformers' Trainer to pass `num_items_in_batch`: with gradient accumulation the loss is then the mean
    over ALL completion tokens of the step, not the mean of the batches' means."""

    def __init__(self, base: TrainingBase) -> None:
        super().__init__()
        self.base = base

    @abstractmethod
    def hidden(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The adapted model's states after the last norm: (B, T, D)."""

    @abstractmethod
    def export(self) -> dict[str, Tensor]:
        """The adapter's tensors as an artifact stores them: PEFT's names, the base's layer numbers, float32."""

    @abstractmethod
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `export`."""

    def completion_logits(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(logits (C, V), reference tokens (C,)) at the positions that predict a completion token, in batch order.

        Only there: with a large vocabulary the head would otherwise cost more than several layers.
        """
        labels_BT = batch["labels"][:, 1:]
        wanted_BT = labels_BT != IGNORE
        return self.base.logits(self.hidden(batch)[:, :-1][wanted_BT]), labels_BT[wanted_BT]

    def forward(self, *, num_items_in_batch: Tensor | int | None = None, **batch: Tensor) -> dict[str, Tensor]:
        """{"loss"}: cross entropy in float32, summed over the completion tokens and divided by how many there are (in
        the whole step if `num_items_in_batch` says so)."""
        logits_CV, reference_C = self.completion_logits(batch)
        total = nn.functional.cross_entropy(logits_CV.float(), reference_C, reduction="sum")
        return {"loss": total / (num_items_in_batch if num_items_in_batch is not None else len(reference_C))}

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
