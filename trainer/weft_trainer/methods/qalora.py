"""QA-LoRA: `y = W x + s B A pool(x)`, pool the SUM over each quantization group (arXiv:2309.14717, algorithm 1).

Own code: PEFT's QA-LoRA knows GPTQ layers only and cannot merge. The layer keeps PEFT's tensor names.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weft_registry.base import BaseSpec
from weft_registry.errors import PreconditionError
from weft_registry.kinds.low_rank import PEFT_PREFIX
from weft_registry.kinds.qalora import QaLoraParams
from weft_trainer.config.adapter import LowRankOptions
from weft_trainer.data.tokenization import TextEncoder
from weft_trainer.methods import targets
from weft_trainer.modeling.adapted import AdaptedModel
from weft_trainer.modeling.base import TrainingBase
from weft_trainer.modeling.inserted import InsertedModel, insert_layers


class QaLoraMethod:
    """`method: qalora`."""

    name = kind = "qalora"

    def params(self, options: LowRankOptions, base: BaseSpec, encoder: TextEncoder) -> QaLoraParams:
        """See `Method.params`. A is (r, K / g), so a rank is at most K / g. Also raises `PreconditionError` for a base
        whose minima are not floats."""
        quant = base.fingerprint.quant
        if quant.zero_point != "float":
            raise PreconditionError(
                f"QA-LoRA merges into the minimum of each group, but the base {base.fingerprint.id} has integer zero "
                "points: train lora on it, or add the base again from a format with float minima"
            )
        resolved = targets.resolve(options, base, pooled=quant.group_size)
        return QaLoraParams(**vars(resolved), group_size=quant.group_size)

    def first_layer(self, params: QaLoraParams) -> int:
        """See `Method.first_layer`."""
        return targets.lowest_layer(params)

    def attach(
        self, base: TrainingBase, params: QaLoraParams, options: LowRankOptions, encoder: TextEncoder
    ) -> AdaptedModel:
        """A uniform, B zero."""
        return QaLoraModel(base, params, options.dropout)

    def bare(self, base: TrainingBase, params: QaLoraParams) -> AdaptedModel:
        """See `Method.bare`."""
        return QaLoraModel(base, params, dropout=0.0)


class QaLoraModel(InsertedModel):
    """The base with its target linears replaced by `QaLoraLinear`."""

    def __init__(self, base: TrainingBase, params: QaLoraParams, dropout: float) -> None:
        super().__init__(base)
        self._layers = insert_layers(
            base,
            params.target_modules,
            lambda module, linear: QaLoraLinear(
                linear, params.rank(module), params.group_size, params.scaling(module), dropout
            ),
        )
        # Registered once and as a whole, so that `named_parameters` finds the layers in their places in the model.
        self.model = base.model

    def stored(self) -> dict[str, Tensor]:
        """See `InsertedModel.stored`."""
        return {
            f"{PEFT_PREFIX}{module}.{name}": parameter
            for module, layer in self._layers.items()
            for name, parameter in (("lora_A.weight", layer.lora_A.weight), ("lora_B.weight", layer.lora_B.weight))
        }


class QaLoraLinear(nn.Module):
    """A frozen linear layer plus a low-rank one over its group-pooled input.

    `A` is (r, K / g), `B` is (N, r), both float32 master weights. The pooled input is summed in float32 where the
    input's dtype is shorter: a sum of 32 bfloat16 numbers would lose what the adapter learns from.
    """

    def __init__(self, base_layer: nn.Module, r: int, group_size: int, scaling: float, dropout: float) -> None:
        super().__init__()
        n_in, n_out = int(base_layer.in_features), int(base_layer.out_features)  # type: ignore[arg-type]
        self.base_layer = base_layer
        self.group_size = group_size
        self.scaling = scaling
        self.dropout = nn.Dropout(dropout)
        self.lora_A = nn.Linear(n_in // group_size, r, bias=False)
        self.lora_B = nn.Linear(r, n_out, bias=False)
        nn.init.zeros_(self.lora_B.weight)
        # LoRA draws A from +-1/sqrt(K). The K / g pooled inputs have g times the variance of one input (for
        # independent inputs), so the same bound, and not 1/sqrt(K / g), gives h = A pool(x) LoRA's variance.
        nn.init.uniform_(self.lora_A.weight, -1 / math.sqrt(n_in), 1 / math.sqrt(n_in))

    def forward(self, x: Tensor) -> Tensor:
        """`W x + s B A pool(dropout(x))`, (..., K) to (..., N)."""
        y: Tensor = self.base_layer(x)
        pooled = self.dropout(x).unflatten(-1, (-1, self.group_size)).sum(-1, dtype=torch.float32).to(x.dtype)
        h = F.linear(pooled, self.lora_A.weight.to(x.dtype))
        return y + F.linear(h, (self.lora_B.weight * self.scaling).to(x.dtype))
