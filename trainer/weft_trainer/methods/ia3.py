"""(IA)^3: `y = l * (W x + b)`, or `y = W (l * x) + b` at a feedforward module (arXiv:2205.05638, section 3.3).

Own code: PEFT's takes torch's linear layers only. The layer keeps PEFT's tensor names.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from weft_registry.base import BaseSpec
from weft_registry.kinds.ia3 import VECTOR, Ia3Params, check_input
from weft_registry.kinds.low_rank import PEFT_PREFIX
from weft_trainer import targets
from weft_trainer.adapted import AdaptedModel, load_exactly
from weft_trainer.data import TextEncoder
from weft_trainer.model import TrainingBase
from weft_trainer.options import Ia3Options

_FIELD = "adapter.feedforward_modules"


class Ia3Method:
    """`method: ia3`."""

    name = kind = "ia3"

    def params(self, options: Ia3Options, base: BaseSpec, encoder: TextEncoder) -> Ia3Params:
        """See `Method.params`."""
        modules = targets.choose(options.target_modules, options.layers, base)
        if options.feedforward_modules is None:
            feedforward = tuple(module for module in modules if module.endswith(".down_proj"))
        else:
            feedforward = targets.among(options.feedforward_modules, modules, _FIELD, base)
        for module in feedforward:
            check_input(module, _FIELD)
        return Ia3Params(modules, feedforward)

    def first_layer(self, params: Ia3Params) -> int:
        """See `Method.first_layer`."""
        return targets.lowest_layer(params)

    def attach(self, base: TrainingBase, params: Ia3Params, options: Ia3Options, encoder: TextEncoder) -> AdaptedModel:
        """Ones: training starts at the base."""
        return Ia3Model(base, params)

    def bare(self, base: TrainingBase, params: Ia3Params) -> AdaptedModel:
        """See `Method.bare`."""
        return Ia3Model(base, params)


class Ia3Model(AdaptedModel):
    """The base with its target linears replaced by `Ia3Linear`."""

    def __init__(self, base: TrainingBase, params: Ia3Params) -> None:
        super().__init__(base)
        self._layers: dict[str, Ia3Linear] = {}
        for module in params.target_modules:
            parent, _, child = base.local(module).rpartition(".")
            owner = base.model.get_submodule(parent)
            layer = Ia3Linear(getattr(owner, child), module in params.feedforward_modules).to(base.device)
            setattr(owner, child, layer)
            self._layers[module] = layer
        # Registered once and as a whole, so that `named_parameters` finds the layers in their places in the model.
        self.model = base.model

    def hidden(self, batch: Mapping[str, Tensor]) -> Tensor:
        """See `AdaptedModel.hidden`."""
        return self.base.hidden(batch)

    def export(self) -> dict[str, Tensor]:
        """See `AdaptedModel.export`."""
        return {name: parameter.detach().cpu().clone() for name, parameter in self._stored().items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """See `AdaptedModel.restore`."""
        load_exactly(self._stored(), tensors)

    def _stored(self) -> dict[str, Tensor]:
        return {f"{PEFT_PREFIX}{module}{VECTOR}": layer.ia3_l for module, layer in self._layers.items()}


class Ia3Linear(nn.Module):
    """A frozen linear layer with a learned factor for every output, bias and all, or for every input.

    The vector is (N, 1), or (1, K) of a feedforward layer, in float32.
    """

    def __init__(self, base_layer: nn.Module, is_feedforward: bool) -> None:
        super().__init__()
        n_in, n_out = int(base_layer.in_features), int(base_layer.out_features)  # type: ignore[arg-type]
        self.base_layer = base_layer
        self.is_feedforward = is_feedforward
        self.ia3_l = nn.Parameter(torch.ones((1, n_in) if is_feedforward else (n_out, 1)))

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N). Products with the vector are taken in float32: it starts at one, where bfloat16 has
        steps of a hundredth."""
        vector = self.ia3_l.flatten()
        if self.is_feedforward:
            y: Tensor = self.base_layer((x.float() * vector).to(x.dtype))
            return y
        y = self.base_layer(x)
        return (y.float() * vector).to(y.dtype)
