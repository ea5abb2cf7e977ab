"""DoRA: `y = m / ||W + s B A|| (W x + s B A x) + b` (arXiv:2402.09353, eq. 5), the norm over each output's inputs.

Own code: PEFT's reads the dense weight of its layer, which an int4 layer has not. As in the paper (section 4.3) and in
PEFT the norm is a constant to the gradient. The layer keeps PEFT's tensor names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weft_registry.base import BaseSpec
from weft_registry.kinds.dora import MAGNITUDE
from weft_registry.kinds.low_rank import PEFT_PREFIX, LowRankParams
from weft_trainer import initial, targets
from weft_trainer.adapted import AdaptedModel, load_exactly
from weft_trainer.data import TextEncoder
from weft_trainer.initial import Start, StartedFactors
from weft_trainer.model import TrainingBase
from weft_trainer.options import LoraOptions


class DoraMethod:
    """`method: dora`."""

    name = kind = "dora"

    def params(self, options: LoraOptions, base: BaseSpec, encoder: TextEncoder) -> LowRankParams:
        """See `Method.params`."""
        return initial.stored_params(options, targets.resolve(options, base))

    def first_layer(self, params: LowRankParams) -> int:
        """See `Method.first_layer`."""
        return targets.lowest_layer(params)

    def attach(
        self, base: TrainingBase, params: LowRankParams, options: LoraOptions, encoder: TextEncoder
    ) -> AdaptedModel:
        """A and B begin as LoRA's; the magnitudes are the norms of what A and B make of the weights."""
        trained = targets.resolve(options, base.stored.spec)
        model = DoraModel(base, trained, options.dropout)
        if options.init == "gaussian":
            model.draw_normal()
        model.begin(initial.starts(options, base.stored, trained))
        return model

    def bare(self, base: TrainingBase, params: LowRankParams) -> AdaptedModel:
        """See `Method.bare`."""
        return DoraModel(base, params, dropout=0.0)


class DoraModel(AdaptedModel):
    """The base with its target linears replaced by `DoraLinear`."""

    def __init__(self, base: TrainingBase, params: LowRankParams, dropout: float) -> None:
        super().__init__(base)
        self._layers: dict[str, DoraLinear] = {}
        for module in params.target_modules:
            parent, _, child = base.local(module).rpartition(".")
            owner = base.model.get_submodule(parent)
            weight_NK = base.stored.int4(module).dequantize()
            square_N = torch.linalg.vector_norm(weight_NK, dim=1).square()
            layer = DoraLinear(
                getattr(owner, child), square_N, params.rank(module), params.scaling(module), dropout
            ).to(base.device)
            setattr(owner, child, layer)
            self._layers[module] = layer
        # Registered once and as a whole, so that `named_parameters` finds the layers in their places in the model.
        self.model = base.model

    @torch.no_grad()
    def draw_normal(self) -> None:
        """A normal with standard deviation 1 / r, as PEFT's "gaussian" has it; B stays zero."""
        for layer in self._layers.values():
            nn.init.normal_(layer.lora_A.weight, std=1 / layer.lora_A.weight.shape[0])

    @torch.no_grad()
    def begin(self, starts: Iterable[tuple[str, Start]]) -> None:
        """The first A and B of these modules, and the magnitudes that go with them."""
        for module, start in starts:
            layer = self._layers[module]
            layer.lora_A.weight.copy_(start.a_rK)
            layer.lora_B.weight.copy_(start.b_Nr)
            layer.started = StartedFactors(start).to(layer.lora_A.weight.device) if start.subtracted else None
            layer.lora_magnitude_vector.copy_(layer.norm())

    def hidden(self, batch: Mapping[str, Tensor]) -> Tensor:
        """See `AdaptedModel.hidden`."""
        return self.base.hidden(batch)

    def export(self) -> dict[str, Tensor]:
        """See `AdaptedModel.export`."""
        found: dict[str, Tensor] = {}
        for module, layer in self._layers.items():
            values = (*layer.factors(), layer.lora_magnitude_vector)
            for name, value in zip(_names(module), values, strict=True):
                found[name] = value.detach().float().cpu().clone()
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """See `AdaptedModel.restore`."""
        parameters: dict[str, Tensor] = {}
        values = dict(tensors)
        for module, layer in self._layers.items():
            a, b, magnitude = _names(module)
            parameters |= {a: layer.lora_A.weight, b: layer.lora_B.weight, magnitude: layer.lora_magnitude_vector}
            if layer.started is not None and {a, b} <= values.keys():
                values[a], values[b] = layer.started.split(values[a], values[b])
        load_exactly(parameters, values)


class DoraLinear(nn.Module):
    """A frozen linear layer whose outputs have learned magnitudes over a learned direction.

    `A` is (r, K), `B` is (N, r), the magnitude (N,), all float32 master weights.
    """

    started: StartedFactors | None

    def __init__(self, base_layer: nn.Module, square_N: Tensor, r: int, scaling: float, dropout: float) -> None:
        """`square_N` holds the squared norms of the base weight's rows."""
        super().__init__()
        n_in, n_out = int(base_layer.in_features), int(base_layer.out_features)  # type: ignore[arg-type]
        self.base_layer = base_layer
        self.scaling = scaling
        self.dropout = nn.Dropout(dropout)
        self.lora_A = nn.Linear(n_in, r, bias=False)
        self.lora_B = nn.Linear(r, n_out, bias=False)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)
        self.lora_magnitude_vector = nn.Parameter(square_N.sqrt())
        self.register_buffer("square_N", square_N)
        self.started = None

    def factors(self) -> tuple[Tensor, Tensor]:
        """(A, B) of the delta."""
        a_rK, b_Nr = self.lora_A.weight, self.lora_B.weight
        return (a_rK, b_Nr) if self.started is None else self.started.delta(a_rK, b_Nr)

    @torch.no_grad()
    def norm(self) -> Tensor:
        """`||W + s B A||` (N,), in float32, from

            ||W + s B A||^2  =  ||W||^2 + 2 s diag(B (W A^T)^T) + s^2 diag(B A A^T B^T)

        The product with A is one more row or so to the base layer, where the dense weight would be as large as it.
        """
        a_rK, b_Nr = self.factors()
        projected_rN = self._product(a_rK.float())
        gram_rr = a_rK @ a_rK.t()
        cross_N = (b_Nr.t() * projected_rN).sum(0)
        own_N = ((b_Nr @ gram_rr) * b_Nr).sum(1)
        square_N = self.get_buffer("square_N") + 2 * self.scaling * cross_N + self.scaling**2 * own_N
        return square_N.clamp_min(0).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N). Dropout acts on what the delta reads and, as in PEFT, on the base's part in the
        rescaling: `W x + b + (g - 1) W dropout(x) + g s B A dropout(x)`."""
        y: Tensor = self.base_layer(x)
        dropped = self.dropout(x)
        again = self._product(dropped) if self.training and self.dropout.p > 0 else self._without_bias(y)
        a_rK, b_Nr = self.factors()
        delta = F.linear(F.linear(dropped, a_rK.to(x.dtype)), (b_Nr * self.scaling).to(x.dtype))
        scale_N = self.lora_magnitude_vector / self.norm()
        # The difference to 1 is rounded, not the scale: close to 1 there is more left of it.
        return y + (scale_N - 1).to(x.dtype) * again + scale_N.to(x.dtype) * delta

    def _product(self, x: Tensor) -> Tensor:
        """`x W^T`, in the dtype of `x`."""
        if isinstance(self.base_layer, nn.Linear):
            return F.linear(x, self.base_layer.weight.to(x.dtype))
        return self._without_bias(self.base_layer(x))

    def _without_bias(self, y: Tensor) -> Tensor:
        bias: Any = self.base_layer.bias
        return y if bias is None else y - bias.to(y.dtype)


def _names(module: str) -> tuple[str, str, str]:
    prefix = PEFT_PREFIX + module
    return f"{prefix}.lora_A.weight", f"{prefix}.lora_B.weight", prefix + MAGNITUDE
