"""(IA)^3: `y = l * (W x + b)`, or `y = W (l * x) + b` at a feedforward module (arXiv:2205.05638, section 3.3).

Own code: PEFT's takes torch's linear layers only. The layer keeps PEFT's tensor names.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weft_registry.base import BaseSpec
from weft_registry.kinds.ia3 import VECTOR, Ia3Params, check_input
from weft_registry.kinds.low_rank import PEFT_PREFIX
from weft_trainer.config.adapter import Ia3Options
from weft_trainer.data.tokenization import TextEncoder
from weft_trainer.methods import targets
from weft_trainer.modeling.adapted import AdaptedModel
from weft_trainer.modeling.base import TrainingBase
from weft_trainer.modeling.inserted import InsertedModel, insert_layers

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


class Ia3Model(InsertedModel):
    """The base with its target linears replaced by `Ia3Linear`."""

    def __init__(self, base: TrainingBase, params: Ia3Params) -> None:
        super().__init__(base)
        self._layers = insert_layers(
            base,
            params.target_modules,
            lambda module, linear: Ia3Linear(linear, module in params.feedforward_modules),
        )
        # Registered once and as a whole, so that `named_parameters` finds the layers in their places in the model.
        self.model = base.model

    def stored(self) -> dict[str, Tensor]:
        """See `InsertedModel.stored`."""
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
