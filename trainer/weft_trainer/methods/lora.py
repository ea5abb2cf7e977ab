"""LoRA through PEFT, on linears that PEFT does not know: `y = W x + s B A x` (arXiv:2106.09685, eq. 3)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import peft
import torch
from peft.tuners.lora.layer import Linear as PeftLoraLinear
from torch import Tensor, nn
from torch.nn import functional as F

from weft_adapters.int4 import Int4Linear
from weft_registry.base import BaseSpec
from weft_registry.kinds.low_rank import PEFT_PREFIX, LowRankParams
from weft_trainer import initial, targets
from weft_trainer.adapted import AdaptedModel, load_exactly
from weft_trainer.data import TextEncoder
from weft_trainer.initial import Start, StartedFactors
from weft_trainer.model import TrainingBase
from weft_trainer.options import LoraOptions

_ADAPTER = "default"


class LoraMethod:
    """`method: lora`."""

    name = kind = "lora"

    def params(self, options: LoraOptions, base: BaseSpec, encoder: TextEncoder) -> LowRankParams:
        """See `Method.params`."""
        return initial.stored_params(options, targets.resolve(options, base))

    def first_layer(self, params: LowRankParams) -> int:
        """See `Method.first_layer`."""
        return targets.lowest_layer(params)

    def attach(
        self, base: TrainingBase, params: LowRankParams, options: LoraOptions, encoder: TextEncoder
    ) -> AdaptedModel:
        """Begins as `adapter.init` says; "default" is PEFT's own: A uniform, B zero."""
        trained = targets.resolve(options, base.stored.spec)
        model = LoraModel(base, trained, options.dropout)
        if options.init == "gaussian":
            model.draw_normal()
        model.begin(initial.starts(options, base.stored, trained))
        return model

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
        self._layers: dict[str, FrozenLoraLinear] = {
            module: base.model.get_submodule(base.local(module)) for module in params.target_modules
        }

    @torch.no_grad()
    def draw_normal(self) -> None:
        """A normal with standard deviation 1 / r, as PEFT's "gaussian" has it; B stays zero."""
        for layer in self._layers.values():
            nn.init.normal_(layer.a_rK, std=1 / layer.a_rK.shape[0])

    @torch.no_grad()
    def begin(self, starts: Iterable[tuple[str, Start]]) -> None:
        """The first A and B of these modules."""
        for module, start in starts:
            layer = self._layers[module]
            layer.a_rK.copy_(start.a_rK)
            layer.b_Nr.copy_(start.b_Nr)
            layer.started = StartedFactors(start).to(layer.a_rK.device) if start.subtracted else None

    def hidden(self, batch: Mapping[str, Tensor]) -> Tensor:
        """See `AdaptedModel.hidden`."""
        return self.base.hidden(batch)

    def export(self) -> dict[str, Tensor]:
        """See `AdaptedModel.export`."""
        found: dict[str, Tensor] = {}
        for module, layer in self._layers.items():
            for name, factor in zip(_names(module), layer.factors(), strict=True):
                found[name] = factor.detach().float().cpu().clone()
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """See `AdaptedModel.restore`."""
        parameters: dict[str, Tensor] = {}
        values = dict(tensors)
        for module, layer in self._layers.items():
            name_a, name_b = _names(module)
            parameters |= {name_a: layer.a_rK, name_b: layer.b_Nr}
            if layer.started is not None and {name_a, name_b} <= values.keys():
                values[name_a], values[name_b] = layer.started.split(values[name_a], values[name_b])
        load_exactly(parameters, values)


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

    def factors(self) -> tuple[Tensor, Tensor]:
        """(A, B) of the delta."""
        return (self.a_rK, self.b_Nr) if self.started is None else self.started.delta(self.a_rK, self.b_Nr)

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        # PEFT knows where its own list of layer types keeps them, and warns about any other.
        return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`W x + s B A dropout(x)`, (..., K) to (..., N)."""
        y: Tensor = self.base_layer(x)
        if self.disable_adapters:
            return y
        a_rK, b_Nr = self.factors()
        h = F.linear(self.lora_dropout[_ADAPTER](x), a_rK.to(x.dtype))
        scaled_Nr: Tensor = (b_Nr * self.scaling[_ADAPTER]).to(x.dtype)
        return y + F.linear(h, scaled_Nr)


def _names(module: str) -> tuple[str, str]:
    return f"{PEFT_PREFIX}{module}.lora_A.weight", f"{PEFT_PREFIX}{module}.lora_B.weight"


def _exactly(module: str) -> str:
    # PEFT matches pattern keys as regular expressions behind any number of leading parts.
    return re.escape(module)
