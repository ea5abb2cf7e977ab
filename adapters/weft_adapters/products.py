"""Dense products with a constant weight, in the form that a device and dtype are fastest at.

Legend: T rows, K inputs, N outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from weft_adapters.processor import multiplies_bfloat16


class Product(Protocol):
    """`x W^T + bias` for one constant W."""

    @property
    def size_bytes(self) -> int:
        """Bytes that this product holds and shares with no other."""
        ...

    def __call__(self, x_TK: Tensor) -> Tensor:
        """A fresh (T, N), never a view of anything."""
        ...


@dataclass(frozen=True, eq=False)
class PlainProduct:
    """A dense weight, as torch multiplies it."""

    weight_NK: Tensor
    bias_N: Tensor | None

    @property
    def size_bytes(self) -> int:
        """See `Product`."""
        return self.weight_NK.nbytes

    def __call__(self, x_TK: Tensor) -> Tensor:
        """See `Product`."""
        return F.linear(x_TK, self.weight_NK, self.bias_N)


@dataclass(frozen=True, eq=False)
class PackedProduct:
    """A dense bfloat16 weight, reordered once for the CPU: about twice as fast as `PlainProduct` for small batches."""

    packed: Tensor
    bias_N: Tensor | None
    size_bytes: int

    def __call__(self, x_TK: Tensor) -> Tensor:
        """See `Product`."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x_TK, self.packed, self.bias_N, "none", [], "")
        return y


class WidenedProduct(PlainProduct):
    """A dense bfloat16 weight and bias as float32, for a CPU that multiplies no bfloat16: twice the memory, and for
    batches and prompts several times as fast as torch's own loops. Sums in float32, and rounds once."""

    def __call__(self, x_TK: Tensor) -> Tensor:
        """See `Product`."""
        return super().__call__(x_TK.float()).to(torch.bfloat16)


def dense_item_bytes(device: torch.device, dtype: torch.dtype) -> int:
    """What `dense_product` keeps for each number of a weight."""
    return torch.float32.itemsize if _widens(device, dtype) else dtype.itemsize


def dense_product(weight_NK: Tensor, bias_N: Tensor | None = None) -> Product:
    """The product with `weight`, which it may share or reorder, on the weight's device and in its dtype."""
    if _widens(weight_NK.device, weight_NK.dtype):
        return WidenedProduct(weight_NK.float(), None if bias_N is None else bias_N.float())
    if weight_NK.device.type == "cpu" and weight_NK.dtype == torch.bfloat16:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight_NK.contiguous(), None)
        return PackedProduct(packed, bias_N, weight_NK.nbytes)
    return PlainProduct(weight_NK, bias_N)


def _widens(device: torch.device, dtype: torch.dtype) -> bool:
    return device.type == "cpu" and dtype == torch.bfloat16 and not multiplies_bfloat16()
