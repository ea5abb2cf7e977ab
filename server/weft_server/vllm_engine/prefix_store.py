"""A worker's prefixes: read from their files, verified, cut to the worker's heads, kept on its device.

Knows digests, files and tensors; no vLLM, no requests and no cache blocks.

Legend: L layers, P virtual tokens, H key-value heads, h those of this worker, D head size.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor

from weft_registry import digest as digests
from weft_registry.errors import CorruptionError, InvalidInputError, NotFoundError, PreconditionError
from weft_registry.kinds.prefix import TENSOR
from weft_server.vllm_engine.prefix_request import PrefixAdapter


@dataclass(frozen=True)
class PrefixShape:
    """What a prefix must fit, and what of it this worker keeps."""

    num_layers: int
    num_kv_heads: int
    """Of the whole model."""
    head_dim: int
    heads: range
    """Those that this worker computes."""


def local_heads(num_kv_heads: int, rank: int, size: int) -> range:
    """The key-value heads of one of `size` tensor-parallel workers: vLLM deals out whole heads in order, and gives one
    to several workers when there are more of those."""
    if num_kv_heads >= size:
        count = num_kv_heads // size
        return range(rank * count, (rank + 1) * count)
    head = rank // (size // num_kv_heads)
    return range(head, head + 1)


class PrefixStore:
    """Owned by one worker, which alone calls it. Keeps what was used last, within its limit: any other
    version is read again."""

    def __init__(
        self, root: Path, limit_bytes: int, shape: PrefixShape, dtype: torch.dtype, device: torch.device
    ) -> None:
        """`root`: no file outside of this directory is read, whatever a request names."""
        self._root = root.resolve()
        self._limit_bytes = limit_bytes
        self._shape = shape
        self._dtype = dtype
        self._device = device
        self._held: OrderedDict[str, Tensor] = OrderedDict()
        """By version digest, the most recently used last."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the prefixes that are held."""
        return sum(rows.nbytes for rows in self._held.values())

    def get(self, adapter: PrefixAdapter) -> Tensor:
        """The keys [:, 0] and values [:, 1] of this worker's heads: (L, 2, P, h, D), contiguous.

        Raises `CorruptionError` for a file with another digest, `NotFoundError`, `PreconditionError` for one outside of
        the root, and `InvalidInputError` for a tensor that does not fit the model or is not finite in its dtype.
        """
        rows = self._held.get(adapter.digest)
        if rows is None:
            rows = self._held[adapter.digest] = self._read(adapter)
        self._held.move_to_end(adapter.digest)
        while self.size_bytes > self._limit_bytes and len(self._held) > 1:
            self._held.popitem(last=False)
        return rows

    def forget(self, digest: str) -> None:
        """Drops a prefix, if it is held."""
        self._held.pop(digest, None)

    def _read(self, adapter: PrefixAdapter) -> Tensor:
        path = Path(adapter.file).resolve()
        if not path.is_relative_to(self._root):
            raise PreconditionError(
                f"prefix {adapter.digest}: {adapter.file} is not under {self._root}, where prefixes are read from"
            )
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"prefix {adapter.digest}: {adapter.file} is not there: pull it again") from None
        found = digests.of_bytes(data)
        if found != adapter.sha256:
            raise CorruptionError(
                f"prefix {adapter.digest}: {adapter.file} has digest {found}, not {adapter.sha256}: pull it again",
                reason="DIGEST_MISMATCH",
                metadata={"digest": adapter.sha256, "found": found},
            )
        shape, tensor = self._shape, load(data)[TENSOR]
        wanted = (adapter.num_virtual_tokens, shape.num_layers * 2 * shape.num_kv_heads * shape.head_dim)
        if tuple(tensor.shape) != wanted:
            raise InvalidInputError(
                f"prefix {adapter.digest}: {TENSOR} is {tuple(tensor.shape)}; {wanted} fits {shape.num_layers} layers "
                f"of {shape.num_kv_heads} key-value heads of {shape.head_dim}"
            )
        # The stored rows are (P, L * 2 * H * D): see `weft_adapters.kinds.prefix`.
        rows_L2PHD = tensor.view(wanted[0], shape.num_layers, 2, shape.num_kv_heads, shape.head_dim).permute(
            1, 2, 0, 3, 4
        )
        rows_L2PhD = rows_L2PHD[:, :, :, shape.heads.start : shape.heads.stop]
        rows_L2PhD = rows_L2PhD.to(self._device, self._dtype).contiguous()
        if not bool(rows_L2PhD.isfinite().all()):
            # In a block that others get later it would spoil their answers too: a masked NaN is still a NaN.
            raise InvalidInputError(f"prefix {adapter.digest}: numbers that are not finite as {self._dtype}")
        return rows_L2PhD
