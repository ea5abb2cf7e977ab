"""The bytes of the key-value cache: blocks of `BLOCK_TOKENS` tokens in all layers, under one byte budget.

`BlockPool` says who holds which block; a `KvStore` holds the numbers. Each decoder has a store laid out as it reads it.

Legend: L layers, H key-value heads, N blocks, S slots of a block, D head size, P virtual tokens.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from weft_adapters.kinds.kind import KeyValues
from weft_registry.errors import InvalidInputError
from weft_server.torch_engine.blocks import BLOCK_TOKENS


class KvStore(Protocol):
    """One decoder's cache. Only the step thread touches it."""

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers, keys and values."""
        ...

    @property
    def num_blocks(self) -> int:
        """Blocks in all."""
        ...

    def write_prefix(self, blocks: Sequence[int], prefix: KeyValues) -> None:
        """Writes the virtual tokens into the leading slots of `blocks`, in every layer. `blocks` may be longer."""
        ...

    def clear(self, blocks: Sequence[int]) -> None:
        """Zeroes blocks that may hold numbers that are not finite: masking a score does not undo a NaN, so whoever got
        the block next might read it."""
        ...


@dataclass(frozen=True)
class CacheShape:
    """What one token costs."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    @property
    def block_bytes(self) -> int:
        """Bytes of one block's."""
        return BLOCK_TOKENS * self.token_bytes

    def num_blocks(self, limit_bytes: int) -> int:
        """Blocks that fit in a budget. Raises `InvalidInputError` where not even one does."""
        count = limit_bytes // self.block_bytes
        if count == 0:
            raise InvalidInputError(
                f"--kv-memory {limit_bytes}: one block of {BLOCK_TOKENS} tokens takes {self.block_bytes} bytes; allow "
                "more"
            )
        return count


class TorchKvStore:
    """Plain tensors. Heads stand outside of blocks, so that gathered blocks of one head are its tokens in order.

    A slot that was never written holds zero, and so does every slot behind the newest token of a block: `begin` sees
    to it. Reading too much is harmless then, once it is masked.
    """

    def __init__(self, shape: CacheShape, limit_bytes: int) -> None:
        self._shape = shape
        self.num_blocks = shape.num_blocks(limit_bytes)
        self.key_LHNSD = self._zeros()
        self.value_LHNSD = self._zeros()

    @property
    def block_bytes(self) -> int:
        """See `KvStore`."""
        return self._shape.block_bytes

    def write_prefix(self, blocks: Sequence[int], prefix: KeyValues) -> None:
        """See `KvStore`."""
        for index, block in enumerate(blocks):
            tokens = slice(index * BLOCK_TOKENS, min((index + 1) * BLOCK_TOKENS, prefix.length))
            count = tokens.stop - tokens.start
            if count <= 0:
                break
            self.key_LHNSD[:, :, block, :count] = prefix.key_LHPD[:, :, tokens]
            self.value_LHNSD[:, :, block, :count] = prefix.value_LHPD[:, :, tokens]
            self.key_LHNSD[:, :, block, count:] = 0
            self.value_LHNSD[:, :, block, count:] = 0

    def clear(self, blocks: Sequence[int]) -> None:
        """See `KvStore`."""
        if blocks:
            block_M = torch.tensor(blocks, device=self._shape.device)
            self.key_LHNSD.index_fill_(2, block_M, 0)
            self.value_LHNSD.index_fill_(2, block_M, 0)

    def _zeros(self) -> Tensor:
        s = self._shape
        size = (s.num_layers, s.num_kv_heads, self.num_blocks, BLOCK_TOKENS, s.head_dim)
        if s.device.type != "cpu":
            return torch.zeros(size, dtype=s.dtype, device=s.device)
        # Pages that the system gives as they are first written: a budget that is not used costs nothing.
        num_bytes = s.block_bytes * self.num_blocks // 2
        pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return torch.frombuffer(pages, dtype=s.dtype).view(size)
