"""How low-rank adapters lie in memory for the native product, and the table through which it finds them.

An adapter is one arena: site by site in order of use, first the A of the site's modules, then their B, so that what a
step reads of it lies in the order in which it is read. Nothing is padded and nothing is packed for a batch: an adapter
that joins one writes a column of the table.

Legend: M modules of the base in order of use, I indices of active adapters, r rank, K inputs, N outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from weft_adapters.kinds.kind import Adapter, LinearSite, LowRankFactors
from weft_server.torch_engine.deltas import ActiveAdapters
from weft_server.torch_engine.native.layout import BLOCK_N, LOW_RANK
from weft_server.torch_engine.native.memory import Arena

_LINE = 32
"""Elements of a cache line."""

Column = npt.NDArray[Any]
"""(M,) of `LOW_RANK`."""


@dataclass(frozen=True, eq=False)
class NativeAdapter(Adapter[Any]):
    """An adapter laid out for the native product. Its tensors are put together again when somebody asks for them."""

    tensors: LaidOut
    column_M: Column = field(kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size_bytes", self.tensors.size_bytes + sum(part.size_bytes for part in self.parts))


def lay_out(adapter: Adapter[Any], sites: Sequence[LinearSite]) -> Adapter[Any]:
    """The same adapter as the native product reads it; as it is where its kind is not low-rank.

    A few large copies, whatever the number of modules: this runs beside the steps, and a large copy leaves them
    Python's lock.
    """
    if not adapter.kind.low_rank or isinstance(adapter, NativeAdapter):
        return adapter
    found = [[adapter.kind.factors(adapter, module) for module in site.modules] for site in sites]
    in_blocks = iter(blocked([factors.b_Nr for site in found for factors in site if factors is not None]))
    pieces: list[Tensor] = []
    places: dict[int, _Place] = {}
    """By the identity of the stored tensor."""
    end = 0

    def place(stored: Tensor, piece: Tensor, rank: int) -> None:
        nonlocal end
        places[id(stored)] = _Place(end, stored.shape, rank)
        pieces.append(piece)
        end += piece.numel()
        if end % _LINE:
            pieces.append(piece.new_zeros(-end % _LINE))
            end += -end % _LINE

    for site in found:
        here = [factors for factors in site if factors is not None]
        for factors in here:
            place(factors.a_rK, factors.a_rK.flatten().to(torch.bfloat16), 0)
        for factors in here:
            place(factors.b_Nr, next(in_blocks), factors.a_rK.shape[0])
    values = Arena(2 * end).take(end, torch.bfloat16)
    if pieces:
        torch.cat(pieces, out=values)
    laid = {name: places[id(tensor)] for name, tensor in adapter.tensors.items() if id(tensor) in places}
    tensors = LaidOut(values, laid, {name: t for name, t in adapter.tensors.items() if name not in laid})
    column_M = np.array(list(_column(found, places, values.data_ptr())), LOW_RANK)
    return NativeAdapter(adapter.digest, adapter.kind, adapter.params, tensors, adapter.parts, column_M=column_M)


def _column(
    found: Iterable[Sequence[LowRankFactors | None]], places: Mapping[int, _Place], address: int
) -> Iterator[tuple[int, int, int, int, float, int]]:
    for site in found:
        offset = 0
        for factors in site:
            if factors is None:
                yield 0, 0, 0, 0, 0.0, offset
                continue
            a, b = address + 2 * places[id(factors.a_rK)].begin, address + 2 * places[id(factors.b_Nr)].begin
            rank = places[id(factors.b_Nr)].rank
            yield a, b, rank, factors.pooled, factors.scaling, offset
            # Ranks are multiplied two by two.
            offset += rank + rank % 2


def blocked(b_Nr: Sequence[Tensor]) -> list[Tensor]:
    """Each B as (N r,): [N/32][r/2][32][2], the last of an odd number of ranks as [32] at the end of its block."""
    by_rank: dict[int, list[int]] = {}
    for index, b in enumerate(b_Nr):
        by_rank.setdefault(b.shape[1], []).append(index)
    result = list(b_Nr)
    for rank, indices in by_rank.items():
        rows_Nr = torch.cat([b_Nr[index] for index in indices]).to(torch.bfloat16)
        count, even = rows_Nr.shape[0] // BLOCK_N, rank // 2 * 2
        blocks = rows_Nr.view(count, BLOCK_N, rank)
        parts: list[Tensor] = []
        if even:
            # A pair moves as one number: several times as fast as two.
            pairs = blocks[:, :, :even].contiguous().view(torch.int32)
            parts.append(pairs.transpose(1, 2).contiguous().view(torch.bfloat16).flatten(1))
        if rank % 2:
            parts.append(blocks[:, :, even:].flatten(1))
        flat = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        sizes = [b_Nr[index].numel() for index in indices]
        for index, part in zip(indices, torch.split(flat.flatten(), sizes), strict=True):
            result[index] = part
    return result


@dataclass(frozen=True)
class _Place:
    """Where a stored tensor lies in the arena."""

    begin: int
    """In elements."""
    shape: tuple[int, ...]
    rank: int
    """Of a B, which lies in blocks; 0 of an A, which lies as it is stored."""


class LaidOut(Mapping[str, Tensor]):
    """The stored form by name, made when asked for."""

    def __init__(self, values: Tensor, places: Mapping[str, _Place], rest: Mapping[str, Tensor]) -> None:
        self._values, self._places = values, places
        self._rest = rest
        """Tensors that are no factors, as they are."""

    @property
    def size_bytes(self) -> int:
        """Of the tensors."""
        factors = sum(math.prod(place.shape) for place in self._places.values()) * self._values.itemsize
        return factors + sum(tensor.nbytes for tensor in self._rest.values())

    def __getitem__(self, name: str) -> Tensor:
        place = self._places.get(name)
        if place is None:
            return self._rest[name]
        values = self._values[place.begin : place.begin + math.prod(place.shape)]
        if not place.rank:
            return values.view(place.shape)
        blocks, even = values.view(-1, BLOCK_N * place.rank), place.rank // 2 * 2
        count = blocks.shape[0]
        paired = blocks[:, : BLOCK_N * even].view(count, even // 2, BLOCK_N, 2).transpose(1, 2).flatten(2)
        last = blocks[:, BLOCK_N * even :].view(count, BLOCK_N, place.rank - even)
        return torch.cat((paired, last), dim=2).flatten(0, 1)

    def __iter__(self) -> Iterator[str]:
        return chain(self._places, self._rest)

    def __len__(self) -> int:
        return len(self._places) + len(self._rest)


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
