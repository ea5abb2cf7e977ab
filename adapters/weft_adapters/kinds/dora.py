"""DoRA: `y = m / ||W + s B A|| (W x + s B A x) + b` (Liu et al. 2024, arXiv:2402.09353, eq. 5), W the dequantized base.

With g = m / ||W + s B A||, one factor an output, that is LoRA's delta and a scale over the whole output:

    y = g (W x + b + s B A x) + (1 - g) b

The norms follow from the base's weights, so they are computed once, when an adapter is bound.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from weft_adapters.int4 import Int4Weight
from weft_adapters.kinds.kind import Adapter, BaseWeights, OutputScale
from weft_adapters.kinds.lora import Lora
from weft_registry.errors import InvalidInputError
from weft_registry.kinds.dora import MAGNITUDE, DoraSchema
from weft_registry.kinds.low_rank import PEFT_PREFIX, LowRankParams

# Stored names begin with PEFT's prefix, so no stored tensor can be called so.
_SCALE, _SHIFT = ".dora_scale", ".dora_shift"


class Dora(Lora):
    """DoRA over any subset of the base's linear modules, ranks free to differ: LoRA's delta under a scale."""

    schema = DoraSchema()
    scales = True

    def prepare(self, adapter: Adapter[LowRankParams], base: BaseWeights) -> Adapter[LowRankParams]:
        """Adds g (N,) of every module and, where the module has a bias, (1 - g) b, both in float32.

        Raises `InvalidInputError` where an output's weights are all zero: they have no direction to scale.
        """
        added: dict[str, Tensor] = {}
        for module in adapter.params.target_modules:
            device = adapter.tensors[PEFT_PREFIX + module + MAGNITUDE].device
            adapted_NK = super().overlay(module, base.int4(module).to(device), adapter)
            assert adapted_NK is not None, module
            scale_N = _scale(adapted_NK, adapter, module)
            added[module + _SCALE] = scale_N
            bias_N = base.bias(module)
            if bias_N is not None:
                added[module + _SHIFT] = (1 - scale_N) * bias_N.to(device).float()
        return replace(adapter, tensors={**adapter.tensors, **added})

    def output_scale(self, adapter: Adapter[Any], module: str) -> OutputScale | None:
        """See `Kind.output_scale`."""
        if PEFT_PREFIX + module + MAGNITUDE not in adapter.tensors:
            return None
        return OutputScale(adapter.tensors[module + _SCALE], adapter.tensors.get(module + _SHIFT))

    def overlay(self, module: str, weight: Int4Weight, adapter: Adapter[LowRankParams]) -> Tensor | None:
        """`g (W + s B A)`, dense: the delta is below the int4 grid's step. The bias stays."""
        adapted_NK = super().overlay(module, weight, adapter)
        return None if adapted_NK is None else adapted_NK.mul_(_scale(adapted_NK, adapter, module)[:, None])


def _scale(adapted_NK: Tensor, adapter: Adapter[Any], module: str) -> Tensor:
    """g (N,) in float32."""
    magnitude_N = adapter.tensors[PEFT_PREFIX + module + MAGNITUDE].float()
    scale_N: Tensor = magnitude_N / torch.linalg.vector_norm(adapted_NK, dim=1)
    if not bool(scale_N.isfinite().all()):
        output = int(scale_N.isfinite().logical_not().nonzero()[0])
        raise InvalidInputError(
            f"{module}: the magnitude of output {output} over the norm of its adapted weights is not finite: the "
            "weights are all zero there, or too small"
        )
    return scale_N
