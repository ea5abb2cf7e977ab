"""What LoRA and DoRA share: how A and B begin, and how they are stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from weft_registry.base import BaseSpec
from weft_registry.kinds.low_rank import PEFT_PREFIX, LowRankParams
from weft_trainer.config.adapter import LoraOptions
from weft_trainer.data.tokenization import TextEncoder
from weft_trainer.methods import initial, targets
from weft_trainer.methods.initial import Start, StartedFactors
from weft_trainer.modeling.adapted import AdaptedModel, load_exactly
from weft_trainer.modeling.base import TrainingBase


class LowRankLayer(Protocol):
    """A linear layer with a low-rank delta."""

    started: StartedFactors | None
    """What is subtracted from the delta."""

    @property
    def a_rK(self) -> Tensor:
        """The trained A."""
        ...

    @property
    def b_Nr(self) -> Tensor:
        """The trained B."""
        ...


class LowRankModel(AdaptedModel):
    """The base with low-rank layers inside it."""

    @property
    @abstractmethod
    def layers(self) -> Mapping[str, LowRankLayer]:
        """By the base's name of the module."""

    @torch.no_grad()
    def draw_normal(self) -> None:
        """A normal with standard deviation 1 / r, as PEFT's "gaussian" has it; B stays zero."""
        for layer in self.layers.values():
            nn.init.normal_(layer.a_rK, std=1 / layer.a_rK.shape[0])

    @torch.no_grad()
    def begin(self, starts: Iterable[tuple[str, Start]]) -> None:
        """The first A and B of these modules."""
        for module, start in starts:
            layer = self.layers[module]
            layer.a_rK.copy_(start.a_rK)
            layer.b_Nr.copy_(start.b_Nr)
            layer.started = StartedFactors(start).to(layer.a_rK.device) if start.subtracted else None
            self.begun(module)

    def begun(self, module: str) -> None:
        """Called when a module's first A and B are there."""

    def hidden(self, batch: Mapping[str, Tensor]) -> Tensor:
        """See `AdaptedModel.hidden`."""
        return self.base.hidden(batch)

    def parameters_of(self, module: str) -> dict[str, Tensor]:
        """What is trained at a module, by the names that an artifact gives it."""
        name_a, name_b = factor_names(module)
        layer = self.layers[module]
        return {name_a: layer.a_rK, name_b: layer.b_Nr}

    def export(self) -> dict[str, Tensor]:
        """See `AdaptedModel.export`."""
        found: dict[str, Tensor] = {}
        for module, layer in self.layers.items():
            found |= self.parameters_of(module) | dict(zip(factor_names(module), factors(layer), strict=True))
        return {name: value.detach().float().cpu().clone() for name, value in found.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """See `AdaptedModel.restore`."""
        parameters: dict[str, Tensor] = {}
        values = dict(tensors)
        for module, layer in self.layers.items():
            name_a, name_b = factor_names(module)
            parameters |= self.parameters_of(module)
            if layer.started is not None and {name_a, name_b} <= values.keys():
                values[name_a], values[name_b] = layer.started.split(values[name_a], values[name_b])
        load_exactly(parameters, values)


class LowRankMethod(ABC):
    """The training methods of such models."""

    name: str
    kind: str

    @abstractmethod
    def model(self, base: TrainingBase, params: LowRankParams, dropout: float) -> LowRankModel:
        """The model, with A uniform and B zero as PEFT has them."""

    def params(self, options: LoraOptions, base: BaseSpec, encoder: TextEncoder) -> LowRankParams:
        """See `Method.params`."""
        trained = targets.resolve(options, base)
        initial.check_original(options, base, trained.target_modules)
        return initial.stored_params(options, trained)

    def first_layer(self, params: LowRankParams) -> int:
        """See `Method.first_layer`."""
        return targets.lowest_layer(params)

    def attach(
        self, base: TrainingBase, params: LowRankParams, options: LoraOptions, encoder: TextEncoder
    ) -> AdaptedModel:
        """Begins as `adapter.init` says."""
        trained = targets.resolve(options, base.stored.spec)
        model = self.model(base, trained, options.dropout)
        if options.init == "gaussian":
            model.draw_normal()
        model.begin(initial.starts(options, base.stored, trained))
        return model

    def bare(self, base: TrainingBase, params: LowRankParams) -> AdaptedModel:
        """See `Method.bare`."""
        return self.model(base, params, dropout=0.0)


def factors(layer: LowRankLayer) -> tuple[Tensor, Tensor]:
    """(A, B) of a layer's delta."""
    return (layer.a_rK, layer.b_Nr) if layer.started is None else layer.started.delta(layer.a_rK, layer.b_Nr)


def factor_names(module: str) -> tuple[str, str]:
    """What an artifact calls A and B of a module."""
    return f"{PEFT_PREFIX}{module}.lora_A.weight", f"{PEFT_PREFIX}{module}.lora_B.weight"
