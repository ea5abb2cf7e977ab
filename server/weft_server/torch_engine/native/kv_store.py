"""The key-value cache as attention.c reads it: in a block, keys (D/2, 16, 2) and values (8, D, 2) of each head.

Legend: L layers, N blocks, H key-value heads, D head size, P virtual tokens.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

from weft_adapters.kinds.kind import KeyValues
from weft_server.torch_engine.blocks import BLOCK_TOKENS
from weft_server.torch_engine.kv_cache import CacheShape


class NativeKvStore:
    """Implements `KvStore`. Pages are taken from the system as they are first written."""

    def __init__(self, shape: CacheShape, limit_bytes: int) -> None:
        self._shape = shape
        self.num_blocks = shape.num_blocks(limit_bytes)
        size = (shape.num_layers, self.num_blocks, 2, shape.num_kv_heads, BLOCK_TOKENS * shape.head_dim)
        pages = mmap.mmap(-1, self.block_bytes * self.num_blocks, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._cache_LN2HX = torch.frombuffer(pages, dtype=torch.bfloat16).view(size)

    @property
    def block_bytes(self) -> int:
        """See `KvStore`."""
        return self._shape.block_bytes

    def layer(self, index: int) -> int:
        """The address of a layer's blocks."""
        return self._cache_LN2HX[index].data_ptr()

    def write_prefix(self, blocks: Sequence[int], prefix: KeyValues) -> None:
        """See `KvStore`."""
        s = self._shape
        count = -(-prefix.length // BLOCK_TOKENS)
        for kind, tokens in enumerate((prefix.key_LHPD, prefix.value_LHPD)):
            padded = torch.zeros(s.num_layers, s.num_kv_heads, count * BLOCK_TOKENS, s.head_dim, dtype=torch.bfloat16)
            padded[:, :, : prefix.length] = tokens
            by_block = padded.view(s.num_layers, s.num_kv_heads, count, BLOCK_TOKENS, s.head_dim).transpose(1, 2)
            self._cache_LN2HX[:, list(blocks[:count]), kind] = (_keys if kind == 0 else _values)(by_block)

    def clear(self, blocks: Sequence[int]) -> None:
        """See `KvStore`."""
        if blocks:
            self._cache_LN2HX[:, list(blocks)] = 0


def _keys(tokens: Tensor) -> Tensor:
    """(..., 16, D) to (..., D/2, 16, 2), flat."""
    return tokens.reshape(*tokens.shape[:-1], -1, 2).transpose(-3, -2).flatten(-3)


def _values(tokens: Tensor) -> Tensor:
    """(..., 16, D) to (..., 8, D, 2), flat."""
    return tokens.reshape(*tokens.shape[:-2], -1, 2, tokens.shape[-1]).transpose(-2, -1).flatten(-3)
