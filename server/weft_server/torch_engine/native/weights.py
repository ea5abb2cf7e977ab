"""Weights in the order in which the native product reads them. Each holds its tensors and the struct that points at
them.

Legend: N outputs in blocks of 32, K inputs, G groups of inputs.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from weft_adapters.int4 import Int4Weight
from weft_server.torch_engine.native.layout import BLOCK_N, Weight
from weft_server.torch_engine.native.memory import Arena, aligned


class NativeWeight:
    """One linear weight. Immutable."""

    def __init__(self, shape: tuple[int, int], group_size: int, bias_N: Tensor | None, **tensors: Tensor) -> None:
        self.shape = shape
        self.group_size = group_size
        self._bias_N = bias_N
        self._tensors = tensors
        if bias_N is not None:
            tensors = tensors | {"bias": bias_N}
        pointers = {name: tensor.data_ptr() for name, tensor in tensors.items()}
        self.struct = Weight(**pointers, num_out=_padded(shape[0]), num_in=shape[1], group_size=group_size)

    @property
    def address(self) -> int:
        """Of the struct."""
        return ctypes.addressof(self.struct)

    @property
    def dense_address(self) -> int:
        """Of the blocks of a dense weight."""
        return self._tensors["dense"].data_ptr()

    @property
    def size_bytes(self) -> int:
        """Bytes of everything it holds, shared or not."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def merged(self, before: Int4Weight, weight: Int4Weight, bias_N: Tensor | None) -> MergedWeight:
        """`weight`, which has the codes of `before`, this one's own weight: over the same codes, and the same scales
        where they are."""
        own = {"minimum32": _by_block(weight.minimum_NG.float())}
        scale32_NG = weight.scale_NG.float()
        if not torch.equal(scale32_NG, before.scale_NG.float()):
            own["scale32"] = _by_block(scale32_NG)
        shared = {name: self._tensors[name] for name in ("codes", "scale")}
        return MergedWeight(self.shape, self.group_size, _bias(bias_N), **own, **shared)

    def dense(self, weight_NK: Tensor, bias_N: Tensor | None) -> NativeWeight:
        """Another weight of this one's shape, dense."""
        arena = Arena(dense_bytes(*weight_NK.shape))
        return dense_weight(weight_NK, self.group_size, bias_N, arena)


class MergedWeight(NativeWeight):
    """A base weight under another minimum, and other scales where those have changed: holds nothing else of its own."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the minimum and the scales: the codes, and scales that are the same, are the base's."""
        return sum(tensor.nbytes for name, tensor in self._tensors.items() if name in ("minimum32", "scale32"))


def int4_bytes(n_out: int, n_in: int, group_size: int) -> int:
    """What an int4 weight takes in an arena."""
    return aligned(n_out * n_in // 2) + 2 * aligned(2 * n_out * n_in // group_size)


def dense_bytes(n_out: int, n_in: int) -> int:
    """What a dense weight takes in an arena."""
    return aligned(2 * _padded(n_out) * n_in)


def int4_weight(weight: Int4Weight, bias_N: Tensor | None, arena: Arena) -> NativeWeight:
    """An int4 weight with float16 minima, in `arena`. N is a multiple of 32."""
    n_out, n_in = weight.shape
    # A word of 16 bits holds four codes: bits 0-3 output o, 4-7 output o + 16, both of one input; 8-15 the same two
    # outputs two inputs on. The low bit of the word's index is the input's parity.
    codes = weight.codes().view(n_out // BLOCK_N, 2, 16, n_in // 4, 2, 2).permute(0, 3, 2, 5, 4, 1).int()
    shift = torch.tensor([[0, 4], [8, 12]])
    words = (codes << shift).sum((-1, -2), dtype=torch.int32).to(torch.uint16)
    return NativeWeight(
        (n_out, n_in),
        weight.group_size,
        _bias(bias_N),
        codes=arena.put(words),
        scale=arena.put(_by_block(weight.scale_NG)),
        minimum=arena.put(_by_block(weight.minimum_NG)),
    )


def dense_weight(weight_NK: Tensor, group_size: int, bias_N: Tensor | None, arena: Arena) -> NativeWeight:
    """A dense weight in bfloat16, in `arena`; its last block is filled up with zeros."""
    n_out, n_in = weight_NK.shape
    padded = weight_NK.new_zeros(_padded(n_out), n_in, dtype=torch.bfloat16)
    padded[:n_out] = weight_NK
    blocks = arena.put(padded.view(-1, BLOCK_N, n_in // 2, 2).permute(0, 2, 1, 3))
    return NativeWeight((n_out, n_in), group_size, _bias(bias_N), dense=blocks)


def _bias(bias_N: Tensor | None) -> Tensor | None:
    return None if bias_N is None else bias_N.float().contiguous()


def _by_block(values_NG: Tensor) -> Tensor:
    n_out, groups = values_NG.shape
    return values_NG.view(n_out // BLOCK_N, BLOCK_N, groups).transpose(1, 2).contiguous()


def _padded(n_out: int) -> int:
    return -(-n_out // BLOCK_N) * BLOCK_N
