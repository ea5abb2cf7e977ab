"""One bottleneck network at the end of a sublayer, and many of them in one batch.

    for i:  y[rows(i)] += s_i (f_i(z[rows(i)] @ D_i^T + d_i) @ U_i^T + u_i)        z by `reads_i`

Networks that read the same through one non-linearity lie side by side, and two ways compute them, the same up to
rounding: a few large products over all rows, with a mask that keeps each row's own columns, or a few small ones for
each adapter over its own rows.

Legend: T rows, E hidden size, d one network's bottleneck, R all of them side by side, A networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weft_adapters.kinds.kind import Adapter, SublayerSite
from weft_adapters.segments import Segments
from weft_registry.errors import InvalidInputError
from weft_registry.kinds.bottleneck import BottleneckParams, sublayer_prefix

NON_LINEARITIES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
    "leakyrelu": F.leaky_relu,
}
"""By the manifest's names, which are AdapterHub's."""

# What one adapter's small calls cost beyond their arithmetic, as arithmetic: about 75 us, measured on one core of a CPU
# with hidden sizes from 576 to 4096. Sharing won where it wasted up to 7e6 an adapter, and lost from 3e7 on. It only
# chooses between two ways to the same answer.
_CALL_FLOPS = 2.0e7


@dataclass(frozen=True, eq=False)
class Network:
    """One adapter's network at one sublayer: the stored tensors, not copies."""

    down_dE: Tensor
    down_d: Tensor
    up_Ed: Tensor
    up_E: Tensor
    scaling: float
    non_linearity: str
    reads: str

    def delta(self, z_TE: Tensor) -> Tensor:
        """What is added for the rows that read `z_TE`: (T, E)."""
        h_Td = NON_LINEARITIES[self.non_linearity](torch.addmm(self.down_d, z_TE, self.down_dE.t()))
        return torch.addmm(self.up_E, h_Td, self.up_Ed.t()) * self.scaling


def network(adapter: Adapter[BottleneckParams], layer: int, place: str) -> Network | None:
    """An adapter's network at the end of a sublayer; None where it has none."""
    params, at = adapter.params, sublayer_prefix(layer, place)
    if not params.has(layer, place):
        return None
    down, up = (
        (adapter.tensors[f"{at}adapter_{side}.weight"], adapter.tensors[f"{at}adapter_{side}.bias"])
        for side in ("down", "up")
    )
    return Network(*down, *up, params.scaling, params.non_linearity, params.reads)


def read(reads: str, input_TE: Tensor, residual_TE: Tensor, y_TE: Tensor, dtype: torch.dtype) -> Tensor:
    """What a network reads, in the dtype of its weights: see `weft_registry.kinds.bottleneck.READS`."""
    if reads == "output":
        return y_TE.to(dtype)
    if reads == "sum":
        return (residual_TE + y_TE).to(dtype)
    return (residual_TE if reads == "residual" else input_TE).to(dtype)


def add_rows(y_TE: Tensor, rows: slice | Tensor, delta: Tensor) -> None:
    """`y[rows] += delta`, in place."""
    if isinstance(rows, slice):
        y_TE[rows] += delta
    else:
        y_TE.index_add_(0, rows, delta.to(y_TE.dtype))


@dataclass(frozen=True)
class _Owned:
    """One network's place in a group."""

    index: int
    columns: slice
    bias: int
    """The row of `up_RE` that holds its up-projection's bias."""


@dataclass(frozen=True, eq=False)
class Group:
    """Networks that read the same through one non-linearity, side by side, each of another adapter."""

    reads: str
    non_linearity: str
    down_RE: Tensor
    down_R: Tensor
    up_RE: Tensor
    """(R + A, E): every scaled U transposed, then every scaled bias of an up-projection."""
    owner_R: Tensor
    """int32 (R + A,): the adapter index that owns each row of `up_RE`."""
    layout: tuple[tuple[int, int], ...]
    """`owner_R` as (adapter, rows) runs: its identity by value."""
    owned: tuple[_Owned, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the stacks."""
        return self.down_RE.nbytes + self.down_R.nbytes + self.up_RE.nbytes

    def apply(self, input_TE: Tensor, residual_TE: Tensor, y_TE: Tensor, segments: Segments) -> None:
        """See `SublayerPack.apply`."""
        present = [owned for owned in self.owned if owned.index in segments.counts]
        if not present:
            return
        f, dtype = NON_LINEARITIES[self.non_linearity], self.down_RE.dtype
        if self._wasted_flops(segments) <= _CALL_FLOPS * len(present):
            z_TE = read(self.reads, input_TE, residual_TE, y_TE, dtype)
            h_TR = f(torch.addmm(self.down_R, z_TE, self.down_RE.t()))
            # A one for every bias: masked like the rest, it chooses each row's own.
            h_TR = F.pad(h_TR, (0, len(self.owned)), value=1.0)
            # Filled, not multiplied by zero: a neighbour's overflow times zero would be NaN in this row.
            h_TR.masked_fill_(segments.foreign(self.owner_R, self.layout), 0)
            y_TE += h_TR @ self.up_RE
            return
        for owned in present:
            rows = segments.rows(owned.index)
            z_TE = read(self.reads, input_TE[rows], residual_TE[rows], y_TE[rows], dtype)
            h_Td = f(torch.addmm(self.down_R[owned.columns], z_TE, self.down_RE[owned.columns].t()))
            add_rows(y_TE, rows, torch.addmm(self.up_RE[owned.bias], h_Td, self.up_RE[owned.columns]))

    def _wasted_flops(self, segments: Segments) -> float:
        """What the large products compute only to mask it away."""
        width, hidden = self.down_RE.shape
        useful: int = sum(segments.counts.get(o.index, 0) * (o.columns.stop - o.columns.start) for o in self.owned)
        return 4.0 * hidden * (segments.num_rows * width - useful)


@dataclass(frozen=True, eq=False)
class BottleneckPack:
    """The networks at the end of one sublayer. Implements `weft_adapters.kinds.kind.SublayerPack`."""

    stages: tuple[tuple[Group, ...], ...]
    """One after the other, as a stack of adapters asks for: what the second reads, the first has changed."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the stacks."""
        return sum(group.size_bytes for stage in self.stages for group in stage)

    def apply(self, input_TE: Tensor, residual_TE: Tensor, y_TE: Tensor, segments: Segments) -> None:
        """See `SublayerPack.apply`."""
        for stage in self.stages:
            for group in stage:
                group.apply(input_TE, residual_TE, y_TE, segments)


def pack_networks(adapters: Sequence[Adapter[Any] | None], site: SublayerSite) -> BottleneckPack | None:
    """Stacks the adapters' networks at `site`; None when none of them stands there."""
    stages: list[dict[tuple[str, str], list[tuple[int, Network]]]] = []
    for index, adapter in enumerate(adapters):
        if adapter is None:
            continue
        chain = [network(part, site.layer, site.place) for part in adapter.parts or (adapter,)]
        for depth, found in enumerate(one for one in chain if one is not None):
            if depth == len(stages):
                stages.append({})
            stages[depth].setdefault((found.reads, found.non_linearity), []).append((index, found))
    if not stages:
        return None
    return BottleneckPack(tuple(tuple(_group(networks) for networks in stage.values()) for stage in stages))


def _group(networks: Sequence[tuple[int, Network]]) -> Group:
    first = networks[0][1]
    down_RE = torch.cat([one.down_dE for _, one in networks])
    ups = [scaled(one.up_Ed.t(), one.scaling) for _, one in networks]
    biases = [scaled(one.up_E[None], one.scaling) for _, one in networks]
    owned: list[_Owned] = []
    start, end = 0, down_RE.shape[0]
    for number, (index, one) in enumerate(networks):
        owned.append(_Owned(index, slice(start, start + one.down_d.shape[0]), end + number))
        start = owned[-1].columns.stop
    layout = tuple((o.index, o.columns.stop - o.columns.start) for o in owned) + tuple((o.index, 1) for o in owned)
    return Group(
        reads=first.reads,
        non_linearity=first.non_linearity,
        down_RE=down_RE,
        down_R=torch.cat([one.down_d for _, one in networks]),
        up_RE=torch.cat([*ups, *biases]),
        owner_R=torch.tensor([i for i, n in layout for _ in range(n)], dtype=torch.int32, device=down_RE.device),
        layout=layout,
        owned=tuple(owned),
    )


def scaled(tensor: Tensor, scaling: float) -> Tensor:
    """`scaling * tensor`, multiplied in float32 and rounded once."""
    return (tensor.float() * scaling).to(tensor.dtype)


def check_scaling(adapter: Adapter[BottleneckParams]) -> None:
    """Raises `InvalidInputError` if a scaled up-projection overflows: in a shared product, zero times infinity would be
    NaN in the rows of others."""
    for name, tensor in adapter.tensors.items():
        if (
            ".adapter_up." in name
            and not scaled(torch.stack(tensor.aminmax()), adapter.params.scaling).isfinite().all()
        ):
            raise InvalidInputError(f"{name} times the scaling of {adapter.params.scaling:g} is not finite")
