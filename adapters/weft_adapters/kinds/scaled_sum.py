"""What a sum with DoRA adapters in it computes: `y = g (W x + b + B A x) + c`, low-rank factors under a scale.

No artifact is of this kind: it is what adapters become when one request wears several. With weights w_i, where part i
makes `y_i = g_i (y_0 + s_i B_i A_i x) + c_i` of the base's own `y_0 = W x + b` (g_i = 1 and c_i = 0 for LoRA),

    y = y_0 + sum_i w_i (y_i - y_0) = g (y_0 + sum_i (w_i g_i s_i / g) B_i A_i x) + sum_i w_i c_i
    g = 1 + sum_i w_i (g_i - 1)

Merged, the weight is `g (W + B A)` and the bias stays what it is: c_i = (1 - g_i) b, so that g b + sum_i w_i c_i = b.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from weft_adapters.int4 import Int4Weight
from weft_adapters.kinds.kind import Adapter, Kind, LinearPack, LinearSite, LowRankFactors, OutputScale
from weft_adapters.kinds.low_rank import check_scaling, low_rank_factors, pack_low_rank
from weft_registry.kinds.dora import DoraSchema
from weft_registry.kinds.low_rank import LowRankParams

# Stored names begin with PEFT's prefix, so no stored tensor can be called so.
_SCALE, _SHIFT = ".sum_scale", ".sum_shift"


class ScaledSum(Kind[LowRankParams]):
    """A composition of low-rank adapters of which some scale their outputs."""

    schema = DoraSchema()
    mergeable = True
    low_rank = True
    scales = True

    def check(self, adapter: Adapter[Any]) -> None:
        """See `Kind.check`."""
        check_scaling(adapter)

    def factors(self, adapter: Adapter[Any], module: str) -> LowRankFactors | None:
        """See `Kind.factors`."""
        found = low_rank_factors(adapter, module)
        return None if found is None else LowRankFactors(*found, pooled=False)

    def output_scale(self, adapter: Adapter[Any], module: str) -> OutputScale | None:
        """See `Kind.output_scale`."""
        scale_N = adapter.tensors.get(module + _SCALE)
        return None if scale_N is None else OutputScale(scale_N, adapter.tensors.get(module + _SHIFT))

    def pack(self, adapters: Sequence[Adapter[Any] | None], site: LinearSite) -> LinearPack | None:
        """See `Kind.pack`: LoRA's."""
        return pack_low_rank(adapters, site, lambda params: 1)

    def overlay(self, module: str, weight: Int4Weight, adapter: Adapter[LowRankParams]) -> Tensor | None:
        """`g (W + B A)`, dense: the delta is below the int4 grid's step. The bias stays."""
        factors = low_rank_factors(adapter, module)
        if factors is None:
            return None
        a_rK, b_Nr, scaling = factors
        merged_NK = weight.dequantize().addmm_(b_Nr.float(), a_rK.float(), alpha=scaling)
        output = self.output_scale(adapter, module)
        return merged_NK if output is None else merged_NK.mul_(output.scale_N[:, None])


SCALED_SUM = ScaledSum()


def scale_tensors(module: str, scale_N: Tensor, shift_N: Tensor | None) -> dict[str, Tensor]:
    """The scale and the shift of one module, in float32, as a `ScaledSum` keeps them."""
    shift = {} if shift_N is None else {module + _SHIFT: shift_N}
    return {module + _SCALE: scale_N, **shift}
