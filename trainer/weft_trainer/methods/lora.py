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
from weft_registry.base import BaseSpec
from weft_registry.kinds.low_rank import LowRankParams
from weft_trainer import targets
from weft_trainer.adapted import AdaptedModel, load_exactly
from weft_trainer.data import TextEncoder
from weft_trainer.model import TrainingBase, shift_layer
from weft_trainer.options import LowRankOptions

_ADAPTER = "default"


class LoraMethod:
    """`method: lora`."""

    name = kind = "lora"

    def params(self, options: LowRankOptions, base: BaseSpec, encoder: TextEncoder) -> LowRankParams:
        """See `Method.params`."""
        return targets.resolve(options, base)

    def first_layer(self, params: LowRankParams) -> int:
        """See `Method.first_layer`."""
        return targets.lowest_layer(params)

    def attach(
        self, base: TrainingBase, params: LowRankParams, options: LowRankOptions, encoder: TextEncoder
    ) -> AdaptedModel:
        """PEFT's own initial values: A uniform, B zero."""
        return LoraModel(base, params, options.dropout)

    def bare(self, base: TrainingBase, params: LowRankParams) -> AdaptedModel:
        """See `Method.bare`."""
        return LoraModel(base, params, dropout=0.0)


class LoraModel(AdaptedModel):
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

    def hidden(self, batch: Mapping[str, Tensor]) -> Tensor:
        """See `AdaptedModel.hidden`."""
        return self.base.hidden(batch)

    def export(self) -> dict[str, Tensor]:
        """See `AdaptedModel.export`."""
        return {name: parameter.detach().float().cpu().clone() for name, parameter in self._stored().items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """See `AdaptedModel.restore`."""
        load_exactly(self._stored(), tensors)

    def _stored(self) -> dict[str, Tensor]:
        # PEFT's names have the adapter's name in them, which its files leave out, and this model's layer numbers.
        return {
            shift_layer(name.replace(f".{_ADAPTER}.", "."), self.base.first_layer): parameter
            for name, parameter in self.peft.named_parameters()
            if ".lora_A." in name or ".lora_B." in name
        }


class FrozenLoraLinear(PeftLoraLinear):
    """PEFT's LoRA layer over a frozen base layer, computing in the dtype of its input.

    PEFT would compute the delta in the parameters' float32; here they are master weights, cast where they are used.
    """

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        # PEFT knows where its own list of layer types keeps them, and warns about any other.
        return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`W x + s B A dropout(x)`, (..., K) to (..., N)."""
        y: Tensor = self.base_layer(x)
        if self.disable_adapters:
            return y
        a_rK: Any = self.lora_A[_ADAPTER].weight
        b_Nr: Any = self.lora_B[_ADAPTER].weight
        h = F.linear(self.lora_dropout[_ADAPTER](x), a_rK.to(x.dtype))
        scaled_Nr: Tensor = (b_Nr * self.scaling[_ADAPTER]).to(x.dtype)
        return y + F.linear(h, scaled_Nr)


def _exactly(module: str) -> str:
    # PEFT matches pattern keys as regular expressions behind any number of leading parts.
    return re.escape(module)
