"""Adapters whose own layers stand inside the base: how they get there, and how their parameters are stored."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from torch import Tensor, nn

from weft_trainer.modeling.adapted import AdaptedModel, load_exactly
from weft_trainer.modeling.base import TrainingBase, replace_module

L = TypeVar("L", bound=nn.Module)


class InsertedModel(AdaptedModel):
    """The base with layers of the adapter inside it, whose parameters an artifact stores as they are trained."""

    @abstractmethod
    def stored(self) -> dict[str, Tensor]:
        """The adapter's parameters by the names that an artifact gives them."""

    def hidden(self, batch: Mapping[str, Tensor]) -> Tensor:
        """See `AdaptedModel.hidden`."""
        return self.base.hidden(batch)

    def export(self) -> dict[str, Tensor]:
        """See `AdaptedModel.export`."""
        return {name: parameter.detach().cpu().clone() for name, parameter in self.stored().items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """See `AdaptedModel.restore`."""
        load_exactly(self.stored(), tensors)


def insert_layers(base: TrainingBase, modules: Iterable[str], make: Callable[[str, nn.Module], L]) -> dict[str, L]:
    """Puts `make(name, linear)` in the place of each linear layer, on the base's device; returns them by name."""
    layers = {}
    for module in modules:
        name = base.local(module)
        layer = make(module, base.model.get_submodule(name)).to(base.device)
        replace_module(base.model, name, layer)
        layers[module] = layer
    return layers
