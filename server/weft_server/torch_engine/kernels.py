"""How one linear site multiplies: the base's int4 weight, in the form that this device and dtype are fastest at.

Legend: T rows, K inputs, N outputs, G groups, g inputs a group.

| dtype, device | form |
|---|---|
| float32 | the dense float32 weight: the parity mode, exact to float32 rounding |
| bfloat16, CPU | torch's int4 kernel, and for batches a dense copy where memory allows |
| bfloat16, CUDA | torch's tensor-core int4 kernel |
| otherwise (a width no int4 kernel takes) | a dense bfloat16 weight |
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weft_adapters.int4 import Int4Weight
from weft_adapters.products import Product, WidenedProduct, dense_product

_INT4_GROUPS = (32, 64, 128, 256)
# Rows up to which torch's CPU int4 kernel is at least as fast as the dense product. Measured on two cores for the sites
# of a 135M model: beside packed bfloat16 (AVX-512 bf16) equal at 1 to 2 rows and behind from 4 on; beside float32 (a
# processor with AVX2 alone) ahead at 8, and behind by 1.6 at 32.
_INT4_MAX_ROWS, _INT4_MAX_ROWS_WIDENED = 2, 12
_CUDA_INNER_K_TILES = 8


@dataclass(frozen=True, eq=False)
class CpuInt4Kernel:
    """torch's CPU int4 product; batches go to the dense copy if there is one.

    torch's formula is `(code - 8) * scale + zero`, so `zero = minimum + 8 scale` maps our weight onto it.
    """

    packed: Tensor
    scale_zero_GN2: Tensor
    group_size: int
    bias_N: Tensor | None
    copy: Product | None

    @property
    def size_bytes(self) -> int:
        """See `Product`."""
        return self.packed.nbytes + self.scale_zero_GN2.nbytes + (self.copy.size_bytes if self.copy else 0)

    def __call__(self, x_TK: Tensor) -> Tensor:
        """See `Product`."""
        if self.copy is not None and x_TK.shape[0] > _most_rows(self.copy):
            return self.copy(x_TK)
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x_TK, self.packed, self.group_size, self.scale_zero_GN2)
        return y if self.bias_N is None else y + self.bias_N

    def merged(self, weight: Int4Weight, before: Int4Weight, bias_N: Tensor | None) -> ShiftedKernel | RescaledKernel:
        """The kernel of `weight`, which has this one's codes; `before` is this one's own weight."""
        zeros = CpuInt4Kernel(self.packed, _scale_zero(weight), self.group_size, bias_N, None)
        if not torch.equal(weight.scale_NG.float(), before.scale_NG.float()):
            return RescaledKernel(zeros)
        shift_NG = weight.minimum_NG.float() - before.minimum_NG.float()
        return ShiftedKernel(zeros, self.copy, shift_NG.t().to(torch.bfloat16).contiguous(), self.group_size)


@dataclass(frozen=True, eq=False)
class ShiftedKernel:
    """A base kernel whose minima have moved: what a merged QA-LoRA adapter is.

    The codes are shared with the base. Small batches use the moved zeros; larger ones use the identity

        W' x = W x + shift pool(x),     pool the sum over each group

    so that the base's dense copy serves merged weights too, and an overlay stays a sixteenth of the base.
    """

    merged: CpuInt4Kernel
    copy: Product | None
    shift_GN: Tensor
    group_size: int

    @property
    def size_bytes(self) -> int:
        """See `Product`: the codes and the copy are the base's."""
        return self.merged.scale_zero_GN2.nbytes + self.shift_GN.nbytes

    def __call__(self, x_TK: Tensor) -> Tensor:
        """See `Product`."""
        if self.copy is None or x_TK.shape[0] <= _most_rows(self.copy):
            return self.merged(x_TK)
        pooled_TG = x_TK.view(x_TK.shape[0], -1, self.group_size).sum(-1)
        return self.copy(x_TK).addmm_(pooled_TG, self.shift_GN)


@dataclass(frozen=True, eq=False)
class RescaledKernel:
    """A base kernel under other scales and minima: what a merged (IA)^3 adapter is.

    The codes are shared with the base. The base's dense copy is of no use to other scales, and one of its own would
    be eight times as large as they are: batches take the int4 kernel too, at up to half their speed.
    """

    merged: CpuInt4Kernel

    @property
    def size_bytes(self) -> int:
        """See `Product`: the codes are the base's."""
        return self.merged.scale_zero_GN2.nbytes

    def __call__(self, x_TK: Tensor) -> Tensor:
        """See `Product`."""
        return self.merged(x_TK)


@dataclass(frozen=True, eq=False)
class CudaInt4Kernel:
    """torch's CUDA int4 product, of the same formula as the CPU's."""

    packed: Tensor
    scale_zero_GN2: Tensor
    group_size: int
    bias_N: Tensor | None

    @property
    def size_bytes(self) -> int:
        """See `Product`."""
        return self.packed.nbytes + self.scale_zero_GN2.nbytes

    def __call__(self, x_TK: Tensor) -> Tensor:
        """See `Product`."""
        y: Tensor = torch.ops.aten._weight_int4pack_mm(x_TK, self.packed, self.group_size, self.scale_zero_GN2)
        return y if self.bias_N is None else y + self.bias_N

    def merged(self, weight: Int4Weight, before: Int4Weight, bias_N: Tensor | None) -> CudaInt4Kernel:
        """The same codes under `weight`'s scales and minima."""
        return CudaInt4Kernel(self.packed, _scale_zero(weight).to(self.packed.device), self.group_size, bias_N)


@dataclass(frozen=True)
class KernelFactory:
    """Chooses and builds kernels for one device and dtype."""

    device: torch.device
    dtype: torch.dtype
    copies: bool
    """Whether to keep a dense copy of each weight beside the int4 one (CPU)."""

    def base(self, weight: Int4Weight, bias_N: Tensor | None) -> Product:
        """The kernel of an int4 weight."""
        n_out, n_in = weight.shape
        if self.dtype != torch.bfloat16 or weight.group_size not in _INT4_GROUPS or n_out % 16:
            return self.dense(weight.dequantize(self.dtype), bias_N)
        bias_N = None if bias_N is None else bias_N.to(self.device, self.dtype)
        if self.device.type == "cpu":
            packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(weight.codes().int(), 1)
            copy = dense_product(weight.dequantize(torch.bfloat16), bias_N) if self.copies else None
            return CpuInt4Kernel(packed, _scale_zero(weight), weight.group_size, bias_N, copy)
        if n_out % 8 or n_in % (_CUDA_INNER_K_TILES * 16):
            return self.dense(weight.dequantize(self.dtype), bias_N)
        # The CUDA packer wants the EVEN input in the HIGH four bits: the other way round from how we store it.
        codes_NH = weight.codes_NH.to(self.device)
        swapped_NH = (codes_NH << 4) | (codes_NH >> 4)
        packed = torch.ops.aten._convert_weight_to_int4pack(swapped_NH, _CUDA_INNER_K_TILES)
        return CudaInt4Kernel(packed, _scale_zero(weight).to(self.device), weight.group_size, bias_N)

    def dense(self, weight_NK: Tensor, bias_N: Tensor | None) -> Product:
        """The kernel of a dense weight of any dtype."""
        bias_N = None if bias_N is None else bias_N.to(self.device, self.dtype)
        return dense_product(weight_NK.to(self.device, self.dtype), bias_N)

    def overlay(self, base: Product, before: Int4Weight, merged: Int4Weight, bias_N: Tensor | None) -> Product:
        """The kernel of `merged` and its bias; `merged` has the codes of `before`, the weight of `base`."""
        if isinstance(base, CpuInt4Kernel | CudaInt4Kernel):
            return base.merged(merged, before, None if bias_N is None else bias_N.to(self.device, self.dtype))
        return self.dense(merged.dequantize(self.dtype), bias_N)


def _most_rows(copy: Product) -> int:
    return _INT4_MAX_ROWS_WIDENED if isinstance(copy, WidenedProduct) else _INT4_MAX_ROWS


def _scale_zero(weight: Int4Weight) -> Tensor:
    scale_NG = weight.scale_NG.float()
    zero_NG = weight.minimum_NG.float() + 8 * scale_NG
    return torch.stack((scale_NG.t(), zero_NG.t()), dim=-1).to(torch.bfloat16).contiguous()
