"""What a sum with DoRA adapters in it computes: `y = g (W x + b + B A x) + c`, low-rank factors under a scale.

No artifact is of this kind: it is what adapters become when one request wears several. With weights w_i, where part i
makes `y_i = g_i (y_0 + s_i B_i A_i x) + c_i` of the base's own `y_0 = W x + b` (g_i = 1 and c_i = 0 for LoRA),

    y = y_0 + sum_i w_i (y_i - y_0) = g (y_0 + sum_i (w_i g_i s_i / g) B_i A_i x) + sum_i w_i c_i
    g = 1 + sum_i w_i (g_i - 1)

Merged, the weight is `g (W + B A)` and the bias stays what it is: c_i = (1 - g_i) b, so that g b + sum_i w_i c_i = b.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from weft_adapters.int4 import Int4Weight
from weft_adapters.kinds.kind import Adapter, OutputScale
from weft_adapters.kinds.lora import Lora
from weft_registry.kinds.dora import DoraSchema
from weft_registry.kinds.low_rank import LowRankParams

# Stored names begin with PEFT's prefix, so no stored tensor can be called so.
_SCALE, _SHIFT = ".sum_scale", ".sum_shift"


class ScaledSum(Lora):
    """A composition of low-rank adapters of which some scale their outputs: one LoRA's delta under a scale."""

    schema = DoraSchema()
    scales = True

    def output_scale(self, adapter: Adapter[Any], module: str) -> OutputScale | None:
        """See `Kind.output_scale`."""
        scale_N = adapter.tensors.get(module + _SCALE)
        return None if scale_N is None else OutputScale(scale_N, adapter.tensors.get(module + _SHIFT))

    def overlay(self, module: str, weight: Int4Weight, adapter: Adapter[LowRankParams]) -> Tensor | None:
        """`g (W + B A)`, dense: the delta is below the int4 grid's step. The bias stays."""
        merged_NK, output = super().overlay(module, weight, adapter), self.output_scale(adapter, module)
        return merged_NK if merged_NK is None or output is None else merged_NK.mul_(output.scale_N[:, None])


SCALED_SUM = ScaledSum()


def scale_tensors(module: str, scale_N: Tensor, shift_N: Tensor | None) -> dict[str, Tensor]:
    """The scale and the shift of one module, in float32, as a `ScaledSum` keeps them."""
    shift = {} if shift_N is None else {module + _SHIFT: shift_N}
    return {module + _SCALE: scale_N, **shift}
