"""LoRA through PEFT, on linears that PEFT does not know: `y = W x + s B A x` (arXiv:2106.09685, eq. 3)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import peft
from peft.tuners.lora.layer import Linear as PeftLoraLinear
from torch import Tensor, nn
from torch.nn import functional as F

from weft_adapters.int4 import Int4Linear
from weft_registry.kinds.low_rank import LowRankParams
from weft_trainer.methods.initial import StartedFactors
from weft_trainer.methods.low_rank import LowRankMethod, LowRankModel, factors
from weft_trainer.modeling.base import TrainingBase

_ADAPTER = "default"


class LoraMethod(LowRankMethod):
    """`method: lora`."""

    name = kind = "lora"

    def model(self, base: TrainingBase, params: LowRankParams, dropout: float) -> LowRankModel:
        """See `LowRankMethod.model`."""
        return LoraModel(base, params, dropout)


class LoraModel(LowRankModel):
    """A PEFT model around the base."""

    def __init__(self, base: TrainingBase, params: LowRankParams, dropout: float) -> None:
        super().__init__(base)
        config = peft.LoraConfig(
            task_type=peft.TaskType.CAUSAL_LM,
            r=params.r,
            lora_alpha=params.alpha,  # type: ignore[arg-type] # PEFT computes with any number
            lora_dropout=dropout,
            use_rslora=params.use_rslora,
            target_modules=[base.local(module) for module in params.target_modules],
            rank_pattern={_exactly(base.local(m)): r for m, r in params.rank_pattern.items()},
            alpha_pattern={_exactly(base.local(m)): a for m, a in params.alpha_pattern.items()},
        )
        config._register_custom_module({Int4Linear: FrozenLoraLinear, nn.Linear: FrozenLoraLinear})
        int4_layers = [layer for layer in base.model.modules() if isinstance(layer, Int4Linear)]
        for layer in int4_layers:
            # PEFT asks a quantized layer's `qweight` for its device.
            layer.qweight = layer.get_buffer("codes")
        # PEFT replaces the linears inside `base.model`; `base.hidden` therefore runs through the adapter.
        self.peft = peft.get_peft_model(base.model, config)
        for layer in int4_layers:
            del layer.qweight
        self._layers: dict[str, FrozenLoraLinear] = {
            module: base.model.get_submodule(base.local(module)) for module in params.target_modules
        }

    @property
    def layers(self) -> Mapping[str, FrozenLoraLinear]:
        """See `LowRankModel.layers`."""
        return self._layers


class FrozenLoraLinear(PeftLoraLinear):
    """PEFT's LoRA layer over a frozen base layer, computing in the dtype of its input.

    PEFT would compute the delta in the parameters' float32; here they are master weights, cast where they are used.
    """

    started: StartedFactors | None
    """What is subtracted from the delta."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.started = None

    @property
    def a_rK(self) -> Tensor:
        """The trained A."""
        weight: Tensor = self.lora_A[_ADAPTER].weight  # type: ignore[assignment]
        return weight

    @property
    def b_Nr(self) -> Tensor:
        """The trained B."""
        weight: Tensor = self.lora_B[_ADAPTER].weight  # type: ignore[assignment]
        return weight

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        # PEFT knows where its own list of layer types keeps them, and warns about any other.
        return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`W x + s B A dropout(x)`, (..., K) to (..., N)."""
        y: Tensor = self.base_layer(x)
        if self.disable_adapters:
            return y
        a_rK, b_Nr = factors(self)
        h = F.linear(self.lora_dropout[_ADAPTER](x), a_rK.to(x.dtype))
        scaled_Nr: Tensor = (b_Nr * self.scaling[_ADAPTER]).to(x.dtype)
        return y + F.linear(h, scaled_Nr)


def _exactly(module: str) -> str:
    # PEFT matches pattern keys as regular expressions behind any number of leading parts.
    return re.escape(module)
