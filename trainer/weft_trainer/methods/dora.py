"""DoRA: `y = m / ||W + s B A|| (W x + s B A x) + b` (arXiv:2402.09353, eq. 5), the norm over each output's inputs.

Own code: PEFT's reads the dense weight of its layer, which an int4 layer has not. As in the paper (section 4.3) and in
PEFT the norm is a constant to the gradient. The layer keeps PEFT's tensor names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weft_registry.kinds.dora import MAGNITUDE
from weft_registry.kinds.low_rank import PEFT_PREFIX, LowRankParams
from weft_trainer.methods.initial import StartedFactors
from weft_trainer.methods.low_rank import LowRankMethod, LowRankModel, factors
from weft_trainer.modeling.base import TrainingBase
from weft_trainer.modeling.inserted import insert_layers


class DoraMethod(LowRankMethod):
    """`method: dora`. A and B begin as LoRA's; the magnitudes are the norms of what A and B make of the weights."""

    name = kind = "dora"

    def model(self, base: TrainingBase, params: LowRankParams, dropout: float) -> LowRankModel:
        """See `LowRankMethod.model`."""
        return DoraModel(base, params, dropout)


class DoraModel(LowRankModel):
    """The base with its target linears replaced by `DoraLinear`."""

    def __init__(self, base: TrainingBase, params: LowRankParams, dropout: float) -> None:
        super().__init__(base)

        def make(module: str, linear: nn.Module) -> DoraLinear:
            weight_NK = base.stored.int4(module).dequantize()
            square_N = torch.linalg.vector_norm(weight_NK, dim=1).square()
            return DoraLinear(linear, square_N, params.rank(module), params.scaling(module), dropout)

        self._layers = insert_layers(base, params.target_modules, make)
        # Registered once and as a whole, so that `named_parameters` finds the layers in their places in the model.
        self.model = base.model

    @property
    def layers(self) -> Mapping[str, DoraLinear]:
        """See `LowRankModel.layers`."""
        return self._layers

    def begun(self, module: str) -> None:
        """The magnitudes that go with the first A and B."""
        self._layers[module].lora_magnitude_vector.copy_(self._layers[module].norm())

    def parameters_of(self, module: str) -> dict[str, Tensor]:
        """A, B and the magnitudes."""
        magnitude_N = self._layers[module].lora_magnitude_vector
        return super().parameters_of(module) | {f"{PEFT_PREFIX}{module}{MAGNITUDE}": magnitude_N}


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

    @property
    def a_rK(self) -> Tensor:
        """The trained A."""
        return self.lora_A.weight

    @property
    def b_Nr(self) -> Tensor:
        """The trained B."""
        return self.lora_B.weight

    @torch.no_grad()
    def norm(self) -> Tensor:
        """`||W + s B A||` (N,), in float32, from

            ||W + s B A||^2  =  ||W||^2 + 2 s diag(B (W A^T)^T) + s^2 diag(B A A^T B^T)

        The product with A is one more row or so to the base layer, where the dense weight would be as large as it.
        """
        a_rK, b_Nr = factors(self)
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
        a_rK, b_Nr = factors(self)
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
