"""How low-rank adapters lie in memory for the native product, and the table through which it finds them.

An adapter is one arena: site by site in order of use, first the A of the site's modules, then their B, so that what a
step reads of it lies in the order in which it is read. Nothing is padded and nothing is packed for a batch: an adapter
that joins one writes a column of the table.

Legend: M modules of the base in order of use, I indices of active adapters, r rank, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from weft_adapters.kinds.kind import Adapter, LinearSite
from weft_server.torch_engine.deltas import ActiveAdapters
from weft_server.torch_engine.native.layout import BLOCK_N, LOW_RANK
from weft_server.torch_engine.native.memory import Arena, aligned

Column = npt.NDArray[Any]
"""(M,) of `LOW_RANK`."""


@dataclass(frozen=True, eq=False)
class NativeAdapter(Adapter[Any]):
    """An adapter laid out for the native product. Its tensors are put together again when somebody asks for them."""

    column_M: Column = field(kw_only=True)


def lay_out(adapter: Adapter[Any], sites: Sequence[LinearSite]) -> Adapter[Any]:
    """The same adapter as the native product reads it; as it is where its kind is not low-rank."""
    if not adapter.kind.low_rank or isinstance(adapter, NativeAdapter):
        return adapter
    arena = Arena(sum(aligned(2 * tensor.numel()) for tensor in adapter.tensors.values()))
    column: list[tuple[int, int, int, int, float, int]] = []
    laid: dict[int, Tensor | _Blocked] = {}
    """By the identity of the stored tensor."""
    for site in sites:
        found = [adapter.kind.factors(adapter, module) for module in site.modules]
        lefts = [None if f is None else arena.put(f.a_rK.to(torch.bfloat16)) for f in found]
        rights = [None if f is None else _Blocked.of(f.b_Nr.to(torch.bfloat16), arena) for f in found]
        offset = 0
        for factors, a_rK, b in zip(found, lefts, rights, strict=True):
            if factors is None or a_rK is None or b is None:
                column.append((0, 0, 0, 0, 0.0, offset))
                continue
            laid[id(factors.a_rK)], laid[id(factors.b_Nr)] = a_rK, b
            rank = a_rK.shape[0]
            column.append((a_rK.data_ptr(), b.flat.data_ptr(), rank, factors.pooled, factors.scaling, offset))
            # Ranks are multiplied two by two.
            offset += rank + rank % 2
    tensors = _LaidOut({name: laid.get(id(tensor), tensor) for name, tensor in adapter.tensors.items()})
    column_M = np.array(column, LOW_RANK)
    return NativeAdapter(adapter.digest, adapter.kind, adapter.params, tensors, column_M=column_M)


@dataclass(frozen=True, eq=False)
class _Blocked:
    """B (N, r) as [N/32][r/2][32][2], the last of an odd number of ranks as [32] at the end of its block."""

    flat: Tensor
    """(N/32, 32 r)."""
    rank: int

    @classmethod
    def of(cls, b_Nr: Tensor, arena: Arena) -> _Blocked:
        rank, even = b_Nr.shape[1], b_Nr.shape[1] // 2 * 2
        count = b_Nr.shape[0] // BLOCK_N
        blocks = b_Nr.reshape(count, BLOCK_N, rank)
        paired = blocks[:, :, :even].reshape(count, BLOCK_N, even // 2, 2).transpose(1, 2).flatten(1)
        return cls(arena.put(torch.cat((paired, blocks[:, :, even:].flatten(1)), dim=1)), rank)

    def stored(self) -> Tensor:
        even = self.rank // 2 * 2
        count = self.flat.shape[0]
        paired = self.flat[:, : BLOCK_N * even].reshape(count, even // 2, BLOCK_N, 2).transpose(1, 2).flatten(2)
        last = self.flat[:, BLOCK_N * even :].reshape(count, BLOCK_N, self.rank - even)
        return torch.cat((paired, last), dim=2).flatten(0, 1)


class _LaidOut(Mapping[str, Tensor]):
    """The stored form by name, made when asked for."""

    def __init__(self, laid: Mapping[str, Tensor | _Blocked]) -> None:
        self._laid = laid

    def __getitem__(self, name: str) -> Tensor:
        found = self._laid[name]
        return found.stored() if isinstance(found, _Blocked) else found

    def __iter__(self) -> Iterator[str]:
        return iter(self._laid)

    def __len__(self) -> int:
        return len(self._laid)


class LowRankTable:
    """The columns of the active adapters. Only the step thread touches it."""

    def __init__(self, sites: Sequence[LinearSite]) -> None:
        self._sites = sites
        self.first_module: dict[LinearSite, int] = {}
        """Where each site's modules begin in the table."""
        count = 0
        for site in sites:
            self.first_module[site] = count
            count += len(site.modules)
        self._num_modules = count
        self._laid: dict[str, NativeAdapter] = {}
        """By digest, as long as the adapter is active."""
        self._seen: tuple[ActiveAdapters, int] | None = None
        """The adapters that were last taken over, and their version then."""
        self.table_MI: Column = np.zeros((count, 1), LOW_RANK)
        self.ranks = 0
        """The most numbers that one row's A x takes at one site."""

    @property
    def address(self) -> int:
        """Of the table."""
        return int(self.table_MI.ctypes.data)

    def update(self, active: ActiveAdapters) -> bool:
        """Takes over the active adapters. Returns whether anything changed."""
        if self._seen == (active, active.version):
            return False
        self._seen = (active, active.version)
        adapters = active.adapters
        before, self._laid = self._laid, {}
        # Never empty: its address is handed over whether or not an adapter is active.
        self.table_MI = np.zeros((self._num_modules, max(1, len(adapters))), LOW_RANK)
        for index, adapter in enumerate(adapters):
            if adapter is None or not adapter.kind.low_rank:
                continue
            laid = before.get(adapter.digest) or lay_out(adapter, self._sites)
            assert isinstance(laid, NativeAdapter)
            self._laid[adapter.digest] = laid
            self.table_MI[:, index] = laid.column_M
        ends = self.table_MI["offset"] + (self.table_MI["rank"] + 1) // 2 * 2
        self.ranks = int(ends.max(initial=0))
        return True
