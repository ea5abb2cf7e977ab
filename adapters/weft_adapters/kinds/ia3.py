"""(IA)^3: `y = l * (W x + b)`, or `y = W (l * x) + b` at a feedforward module (Liu et al. 2022, arXiv:2205.05638).

An output scale merges EXACTLY into the int4 form: the codes stay, and scale and minimum of a row are multiplied by the
row's factor. So does an input scale of down_proj, whose input is `silu(gate) * up`: it is moved to the rows of up_proj,

    l * (silu(gate) * up)  =  silu(gate) * (l * up)

An input scale of o_proj cannot be moved, for heads share their values; it is exact where it is one number over each
quantization group.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from weft_adapters.int4 import Int4Weight
from weft_adapters.kinds.kind import Adapter, Kind, OutputScale
from weft_registry.kinds.ia3 import VECTOR, Ia3Params, Ia3Schema
from weft_registry.kinds.low_rank import PEFT_PREFIX

_UP, _DOWN = ".up_proj", ".down_proj"


class Ia3(Kind[Ia3Params]):
    """(IA)^3 on the outputs of any linear modules, and on the inputs of those that share theirs with none."""

    schema = Ia3Schema()
    mergeable = True
    scales = True

    def input_scale(self, adapter: Adapter[Any], module: str) -> Tensor | None:
        """See `Kind.input_scale`."""
        return _vector(adapter, module) if module in adapter.params.feedforward_modules else None

    def output_scale(self, adapter: Adapter[Any], module: str) -> OutputScale | None:
        """See `Kind.output_scale`."""
        vector_N = None if module in adapter.params.feedforward_modules else _vector(adapter, module)
        return None if vector_N is None else OutputScale(vector_N)

    def overlay(self, module: str, weight: Int4Weight, adapter: Adapter[Ia3Params]) -> Int4Weight | Tensor | None:
        """The same codes under `l scale` and `l minimum`, in float32; dense where an input scale of o_proj differs
        within a group."""
        factor_N = _row_factors(adapter, module)
        if factor_N is not None:
            return weight.scaled(factor_N[:, None])
        vector_K = None if module.endswith(_DOWN) else self.input_scale(adapter, module)
        if vector_K is None:
            return None
        vector_Gg = vector_K.view(-1, weight.group_size)
        if bool((vector_Gg == vector_Gg[:, :1]).all()):
            return weight.scaled(vector_Gg[None, :, 0])
        return weight.dequantize().mul_(vector_K)

    def overlay_bias(self, module: str, bias_N: Tensor, adapter: Adapter[Ia3Params]) -> Tensor:
        """`l b` where the output is scaled: PEFT scales it bias and all."""
        factor_N = _row_factors(adapter, module)
        return bias_N if factor_N is None else bias_N.float() * factor_N


def _row_factors(adapter: Adapter[Any], module: str) -> Tensor | None:
    """(N,): what the output of a module is multiplied by when all of the adapter is merged; None where by nothing."""
    feedforward = adapter.params.feedforward_modules
    own_N = None if module in feedforward else _vector(adapter, module)
    reader = module.removesuffix(_UP) + _DOWN if module.endswith(_UP) else ""
    moved_N = _vector(adapter, reader) if reader in feedforward else None
    if own_N is None or moved_N is None:
        return own_N if moved_N is None else moved_N
    return own_N * moved_N


def _vector(adapter: Adapter[Any], module: str) -> Tensor | None:
    """(N,) or (K,) in float32; None where the adapter leaves the module alone."""
    stored = adapter.tensors.get(PEFT_PREFIX + module + VECTOR)
    return None if stored is None else stored.flatten().float()
