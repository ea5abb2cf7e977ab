"""The group-wise int4 weight: the one representation that training, serving and merging share.

    w[n, k] = scale[n, k // g] * code[n, k] + minimum[n, k // g]        code in 0..15, g = group size

Shapes: N out_features, K in_features, G = K // g groups. The minimum is a FLOAT per group, which is what lets a
QA-LoRA adapter be merged exactly (arXiv:2309.14717): `minimum + s B A` is again such a weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Int4Weight:
    """One quantized linear weight. Immutable: merging makes a new one that shares `codes_NH`."""

    codes_NH: Tensor
    """uint8 (N, K / 2): two codes a byte, the even input in the low four bits. A base of 2 or 3 bits uses the lowest
    codes of the sixteen, and everything that computes with four bits computes with it."""
    scale_NG: Tensor
    """float16 as imported, float32 when merged into (N, G)."""
    minimum_NG: Tensor
    """float16 as imported, float32 when merged (N, G)."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.codes_NH.shape[0], self.codes_NH.shape[1] * 2

    @property
    def group_size(self) -> int:
        """Inputs that share a scale and a minimum."""
        return self.shape[1] // self.scale_NG.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the codes are."""
        return self.codes_NH.device

    @property
    def size_bytes(self) -> int:
        """Bytes of the three tensors."""
        return sum(t.nbytes for t in (self.codes_NH, self.scale_NG, self.minimum_NG))

    def codes(self) -> Tensor:
        """The codes, one a byte: uint8 (N, K)."""
        return unpack_codes(self.codes_NH)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The dense weight (N, K), computed in float32 and then rounded once to `dtype`."""
        n_out, n_in = self.shape
        code_NGg = self.codes().view(n_out, -1, self.group_size).float()
        dense = torch.addcmul(self.minimum_NG.float()[..., None], code_NGg, self.scale_NG.float()[..., None])
        return dense.view(n_out, n_in).to(dtype)

    def with_minimum(self, minimum_NG: Tensor) -> Int4Weight:
        """The same codes and scales over another minimum."""
        if minimum_NG.shape != self.minimum_NG.shape:
            raise ValueError(f"minimum {tuple(minimum_NG.shape)}, expected {tuple(self.minimum_NG.shape)}")
        return Int4Weight(self.codes_NH, self.scale_NG, minimum_NG)

    def scaled(self, factor_NG: Tensor) -> Int4Weight:
        """`factor * w` on the same codes, the scales and minima in float32. `factor` broadcasts to (N, G)."""
        return Int4Weight(self.codes_NH, self.scale_NG.float() * factor_NG, self.minimum_NG.float() * factor_NG)

    def to(self, device: torch.device | str) -> Int4Weight:
        """The same weight on another device."""
        return Int4Weight(self.codes_NH.to(device), self.scale_NG.to(device), self.minimum_NG.to(device))


def pack_codes(codes_NK: Tensor) -> Tensor:
    """Two 4-bit codes a byte, the even input in the low four bits: uint8 (N, K) to uint8 (N, K / 2)."""
    if codes_NK.dtype != torch.uint8 or codes_NK.shape[1] % 2:
        raise ValueError(f"codes must be uint8 with an even number of inputs, not {codes_NK.dtype} {codes_NK.shape}")
    return codes_NK[:, 0::2] | (codes_NK[:, 1::2] << 4)


def unpack_codes(codes_NH: Tensor) -> Tensor:
    """The inverse of `pack_codes`."""
    return torch.stack((codes_NH & 0xF, codes_NH >> 4), dim=-1).view(codes_NH.shape[0], -1)


class Int4Linear(nn.Module):
    """A frozen linear layer over an `Int4Weight`, for autograd: gradients flow to the input, never to the weight.

    The dense weight exists only while a product needs it, in the forward and again in the backward pass.
    """

    def __init__(self, weight: Int4Weight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("codes", weight.codes_NH)
        self.register_buffer("scale", weight.scale_NG)
        self.register_buffer("minimum", weight.minimum_NG)
        self.register_buffer("bias", bias)

    @property
    def int4(self) -> Int4Weight:
        """The weight as a value."""
        return Int4Weight(self.get_buffer("codes"), self.get_buffer("scale"), self.get_buffer("minimum"))

    def forward(self, x: Tensor) -> Tensor:
        """`x @ W^T + bias`, in the dtype of `x` (..., K) -> (..., N)."""
        y: Tensor = _FrozenProduct.apply(x, self.int4)  # type: ignore[no-untyped-call]
        bias: Tensor | None = self._buffers["bias"]
        return y if bias is None else y + bias.to(y.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Int4Linear:
        # `model.to(dtype)` must not round the stored scales: a base cast to bf16 would be another base. Buffers follow
        # the device only.
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = buffer.to(fn(buffer).device)
        return self

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, group_size={self.int4.group_size}"


class _FrozenProduct(torch.autograd.Function):
    """`x @ W^T` that saves the int4 weight instead of the dense one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Int4Weight) -> Tensor:
        ctx.weight = weight
        return x @ weight.dequantize(x.dtype).t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        return grad @ ctx.weight.dequantize(grad.dtype), None
