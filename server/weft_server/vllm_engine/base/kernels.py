"""How a vLLM layer multiplies by an int4 weight whose groups have a float zero: `w = scale * (code - 8) + zero`.

With `zero = minimum + 8 scale` that is the stored weight. A kernel keeps its zeros where `zeros` finds them, and they
may be written at any time between two steps: that is what merging does.

| kernel | where | what |
|---|---|---|
| `pooled` | wherever vLLM has a symmetric int4 kernel | that kernel, plus `pool(x) Z^T` with the sums of each group |
| `float-zero` | CPU, bfloat16 | torch's int4 product, whose zeros are floats |

Legend: T rows, K inputs, N outputs, G groups, g inputs a group, all of this worker's share.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from weft_adapters.int4 import unpack_codes
from weft_registry.errors import UnsupportedError
from weft_server.vllm_engine import versions
from weft_server.vllm_engine.base.names import PACKED, SCALE


class ZeroKernel(Protocol):
    """One layer's product. Its tensors are the layer's parameters, so that vLLM sees, moves and compiles them."""

    name: str

    def prepare(self, layer: nn.Module, zero_NG: Tensor) -> None:
        """After loading: brings the layer's `weight_packed` and `weight_scale` into the kernel's form and keeps
        `zero_NG`, float32, in the engine's dtype."""
        ...

    def apply(self, layer: nn.Module, x: Tensor, bias_N: Tensor | None, pooled_TG: Tensor | None = None) -> Tensor:
        """(..., K) to (..., N). `pooled_TG` is `pool(x)`, if somebody has it already."""
        ...

    def zeros(self, layer: nn.Module) -> Tensor:
        """The zeros in use, (N, G): a view to read or write in place, at an address that never changes."""
        ...


def pool(x: Tensor, group_size: int) -> Tensor:
    """(..., K) to the sums of each group of inputs, (T, G)."""
    return x.reshape(-1, x.shape[-1] // group_size, group_size).sum(-1)


class Pooled:
    """`y = sym_int4(x) + pool(x) Z^T`: vLLM's own symmetric kernel, and a product with inner size G.

    `sum_k (d (c - 8) + z) x_k = d sum_k (c - 8) x_k + z sum_k x_k`, group by group.
    """

    name = "pooled"

    def __init__(self, full_KN: tuple[int, int], part_KN: tuple[int, int], group_size: int, dtype: torch.dtype) -> None:
        self._group_size = group_size
        self._dtype = dtype
        self._kernel = versions.symmetric_int4_kernel(full_KN, part_KN, group_size, dtype)

    @staticmethod
    def takes(part_KN: tuple[int, int], dtype: torch.dtype, device: torch.device) -> bool:
        """vLLM's chooser knows; it says why when it has none."""
        return True

    def prepare(self, layer: nn.Module, zero_NG: Tensor) -> None:
        """See `ZeroKernel`."""
        scale = getattr(layer, SCALE)
        scale.data = scale.data.to(self._dtype)
        layer.weight_zero = nn.Parameter(zero_NG.to(self._dtype, copy=True), requires_grad=False)
        self._kernel.process_weights_after_loading(layer)
        if getattr(layer, "use_w4a8", False):
            raise UnsupportedError(
                "VLLM_CPU_INT4_W4A8 is on: vLLM would round activations to 8 bits and the base would not be exact; "
                "set VLLM_CPU_INT4_W4A8=0"
            )

    def apply(self, layer: nn.Module, x: Tensor, bias_N: Tensor | None, pooled_TG: Tensor | None = None) -> Tensor:
        """See `ZeroKernel`. The kernel adds the bias: some of vLLM's keep it in an order of their own."""
        y: Tensor = self._kernel.apply_weights(layer, x, bias_N)
        if pooled_TG is None:
            pooled_TG = pool(x, self._group_size)
        zero_NG: Any = layer.weight_zero
        return torch.addmm(y.reshape(-1, y.shape[-1]), pooled_TG, zero_NG.t()).view(y.shape)

    def zeros(self, layer: nn.Module) -> Tensor:
        """See `ZeroKernel`."""
        return layer.get_parameter("weight_zero").data


class FloatZero:
    """torch's CPU int4 product, whose own formula is `(code - 8) * scale + zero` with both in bfloat16."""

    name = "float-zero"

    def __init__(self, full_KN: tuple[int, int], part_KN: tuple[int, int], group_size: int, dtype: torch.dtype) -> None:
        self._group_size = group_size

    @staticmethod
    def takes(part_KN: tuple[int, int], dtype: torch.dtype, device: torch.device) -> bool:
        """bfloat16 on a CPU, outputs in sixteens. In other dtypes the operator exists and is a scalar loop."""
        return (
            device.type == "cpu"
            and dtype == torch.bfloat16
            and part_KN[1] % 16 == 0
            and hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu")
        )

    def prepare(self, layer: nn.Module, zero_NG: Tensor) -> None:
        """See `ZeroKernel`."""
        codes_NK = unpack_codes(getattr(layer, PACKED).data.view(torch.uint8))
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes_NK.int(), 1)
        scale_NG = getattr(layer, SCALE).data.float()
        scale_zero_GN2 = torch.stack((scale_NG.t(), zero_NG.t()), dim=-1).to(torch.bfloat16).contiguous()
        setattr(layer, PACKED, nn.Parameter(packed, requires_grad=False))
        delattr(layer, SCALE)
        layer.weight_scale_zero = nn.Parameter(scale_zero_GN2, requires_grad=False)

    def apply(self, layer: nn.Module, x: Tensor, bias_N: Tensor | None, pooled_TG: Tensor | None = None) -> Tensor:
        """See `ZeroKernel`. Sums of groups are of no use to it."""
        y_TN: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x.reshape(-1, x.shape[-1]), getattr(layer, PACKED), self._group_size, layer.weight_scale_zero
        )
        if bias_N is not None:
            y_TN = y_TN + bias_N
        return y_TN.view(*x.shape[:-1], y_TN.shape[-1])

    def zeros(self, layer: nn.Module) -> Tensor:
        """See `ZeroKernel`."""
        return layer.get_parameter("weight_scale_zero").data[..., 1].t()


KERNELS: dict[str, type[Pooled] | type[FloatZero]] = {kernel.name: kernel for kernel in (FloatZero, Pooled)}
"""By name, the faster first."""


def choose_kernel(
    asked: str,
    full_KN: tuple[int, int],
    part_KN: tuple[int, int],
    group_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> ZeroKernel:
    """The kernel of a layer: the one asked for by name, or with "auto" the first that takes it.

    Raises `UnsupportedError` when the one asked for does not, or vLLM has none, with the reasons.
    """
    for kernel in KERNELS.values() if asked == "auto" else (KERNELS[asked],):
        if kernel.takes(part_KN, dtype, device):
            try:
                return kernel(full_KN, part_KN, group_size, dtype)
            except ValueError as error:
                raise UnsupportedError(f"a layer of {part_KN[0]} x {part_KN[1]}: {error}") from error
    raise UnsupportedError(
        f"the kernel {asked!r} does not take a layer of {part_KN[0]} x {part_KN[1]} in {dtype} on {device.type}; "
        "leave the choice to auto"
    )
