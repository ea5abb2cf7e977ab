"""AdapterFusion at the end of one sublayer: what Q, K, V and the parts multiply to, in one of two forms.

With part i's u_i = U_i h_i + b_i, its scaling in U_i and b_i, and h_i = f_i(D_i z + d_i):

    y <- y + V sum_i p_i u_i        p = softmax_i( (Q z + b_Q) . (K u_i + b_K) )

The product (Q z + b_Q) . b_K is the same for every part and changes no p. What is left of a score is (M z + c) . u_i
with M = K^T Q and c = K^T b_Q: the square form, two products of the hidden size a row. Where the bottlenecks are
narrow, u_i need not be computed at all:

    (M z + c) . u_i  =  (U_i^T M z + U_i^T c) . h_i + (b_i^T M z + b_i^T c)         V u_i  =  (V U_i) h_i + V b_i

That is the thin form: three products as wide as all bottlenecks together, and because nothing in it is as large as the
hidden size squared, several fusions can stand side by side in it (`fusion_pack`).

Legend: T rows, E hidden size, P parts, R all their bottlenecks side by side, X = 2 R + P, Y = R + P.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weft_adapters.kinds.bottleneck_network import NON_LINEARITIES, Network, network
from weft_adapters.kinds.kind import Adapter
from weft_registry.errors import InvalidInputError
from weft_registry.kinds.bottleneck import sublayer_prefix
from weft_registry.kinds.fusion import FusionParams

# No stored tensor of a fusion is called so.
_READ, _READ_BIAS, _WRITE = "thin_read.weight", "thin_read.bias", "thin_write.weight"
_KEY, _KEY_BIAS, _VALUE = "square_key.weight", "square_key.bias", "value.weight"


@dataclass(frozen=True, eq=False)
class Square:
    """One fusion over wide bottlenecks: M and V, and the parts' own networks."""

    reads: str
    key_EE: Tensor
    """M."""
    key_E: Tensor
    """c."""
    value_EE: Tensor | None
    networks: tuple[Network, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.key_EE.dtype

    def delta(self, z_TE: Tensor) -> Tensor:
        """What is added for the rows that read `z_TE`: (T, E)."""
        u_PTE = torch.stack([one.delta(z_TE) for one in self.networks])
        q_TE = torch.addmm(self.key_E, z_TE, self.key_EE.t())
        # In float32: the scores are sums over the whole hidden size, unscaled, and go into an exponential.
        score_PT = (u_PTE.float() * q_TE.float()).sum(-1)
        p_PT = score_PT.softmax(dim=0)
        mixed_TE = (p_PT[..., None] * u_PTE.float()).sum(0).to(u_PTE.dtype)
        return mixed_TE if self.value_EE is None else mixed_TE @ self.value_EE.t()


@dataclass(frozen=True, eq=False)
class Thin:
    """One fusion over narrow bottlenecks, or several side by side."""

    reads: str
    parts: tuple[tuple[str, int], ...]
    """The non-linearity and the bottleneck size of each part."""
    read_XE: Tensor
    """Every D_i, then every U_i^T M, then every b_i^T M."""
    read_X: Tensor
    """What is added to their products with z: d_i, U_i^T c, b_i^T c."""
    write_YE: Tensor
    """Every V U_i transposed, then every V b_i."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.read_XE.dtype

    @property
    def width(self) -> int:
        """R."""
        return sum(size for _, size in self.parts)

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights."""
        return self.read_XE.nbytes + self.read_X.nbytes + self.write_YE.nbytes

    @cached_property
    def _part_R(self) -> Tensor:
        """int64 (R,): the part of each bottleneck's column."""
        sizes = torch.tensor([size for _, size in self.parts], device=self.read_XE.device)
        return torch.arange(len(self.parts), device=sizes.device).repeat_interleave(sizes)

    @cached_property
    def _of_part_RP(self) -> Tensor:
        """float32: one where column r is part p's. A product with it adds up each part's columns."""
        return F.one_hot(self._part_R, len(self.parts)).float()

    def delta(self, z_TE: Tensor, foreign_TY: Tensor | None = None) -> Tensor:
        """What is added for the rows that read `z_TE`: (T, E). `foreign_TY` says which of the columns, and which of the
        parts after them, are another fusion's than the row's; a row that owns none gets zeros."""
        width, count = self.width, len(self.parts)
        x_TX = torch.addmm(self.read_X, z_TE, self.read_XE.t())
        # In float32, as in the square form.
        h_TR = self._activated(x_TX[:, :width]).float()
        score_TR = h_TR * x_TX[:, width : 2 * width].float()
        score_TP = x_TX[:, 2 * width :].float()
        if foreign_TY is not None:
            # Filled, not multiplied by zero: a neighbour's overflow times zero would be NaN in this row.
            score_TR = score_TR.masked_fill_(foreign_TY[:, :width], 0)
            score_TP = score_TP.masked_fill(foreign_TY[:, width:], float("-inf"))
        p_TP = torch.addmm(score_TP, score_TR, self._of_part_RP).softmax(dim=1)
        mixed_TY = torch.empty(len(z_TE), width + count, dtype=p_TP.dtype, device=p_TP.device)
        torch.mul(p_TP.index_select(1, self._part_R), h_TR, out=mixed_TY[:, :width])
        mixed_TY[:, width:] = p_TP
        if foreign_TY is not None:
            mixed_TY.masked_fill_(foreign_TY, 0)
        return mixed_TY.to(self.dtype) @ self.write_YE

    def _activated(self, x_TR: Tensor) -> Tensor:
        alike = [(name, sum(size for _, size in parts)) for name, parts in groupby(self.parts, lambda part: part[0])]
        if len(alike) == 1:
            return NON_LINEARITIES[alike[0][0]](x_TR)
        columns = torch.split(x_TR, [size for _, size in alike], dim=1)
        return torch.cat([NON_LINEARITIES[name](x) for (name, _), x in zip(alike, columns, strict=True)], dim=1)


def fold(adapter: Adapter[FusionParams], layer: int, place: str) -> dict[str, Tensor]:
    """The tensors of a fusion at one sublayer in the form that it will be computed in, multiplied in float32 and
    rounded once: thin where that takes no more bytes than Q, K and V, which is about where it is less arithmetic too.

    Raises `InvalidInputError` where a product overflows: in a batch that would be NaN in the rows of others.
    """
    at = sublayer_prefix(layer, place)
    dtype = adapter.tensors[f"{at}query.weight"].dtype
    query_EE, query_E, key_EE = (
        adapter.tensors[at + name].float() for name in ("query.weight", "query.bias", "key.weight")
    )
    value_EE = adapter.tensors.get(at + _VALUE)
    networks = _networks(adapter, layer, place)
    rows = sum(3 * one.down_d.shape[0] + 2 for one in networks)
    if rows > (2 if value_EE is None else 3) * query_EE.shape[0]:
        found = {_KEY: key_EE.t() @ query_EE, _KEY_BIAS: key_EE.t() @ query_E}
        kept = {} if value_EE is None else {at + _VALUE: value_EE}
    else:
        ups = [one.up_Ed.t().float() * one.scaling for one in networks]
        biases = [one.up_E[None].float() * one.scaling for one in networks]
        u_YE = torch.cat([*ups, *biases])
        key_YE = u_YE @ key_EE.t()
        found = {
            _READ: torch.cat([*(one.down_dE.float() for one in networks), key_YE @ query_EE]),
            _READ_BIAS: torch.cat([*(one.down_d.float() for one in networks), key_YE @ query_E]),
            _WRITE: u_YE if value_EE is None else u_YE @ value_EE.float().t(),
        }
        kept = {}
    folded = {at + name: tensor.to(dtype) for name, tensor in found.items()}
    if not all(bool(torch.stack(tensor.aminmax()).isfinite().all()) for tensor in folded.values()):
        raise InvalidInputError(f"{at}query, key, value and the parts of the fusion, multiplied, are not finite")
    return folded | kept


def folded_at(adapter: Adapter[FusionParams], layer: int, place: str) -> Thin | Square | None:
    """A fusion at the end of a sublayer, from what `fold` made of it; None where it does not stand there."""
    if layer not in adapter.params.layers or place not in adapter.params.places:
        return None
    at, reads = sublayer_prefix(layer, place), adapter.params.reads
    t: Mapping[str, Tensor] = adapter.tensors
    networks = _networks(adapter, layer, place)
    if at + _READ in t:
        parts = tuple((one.non_linearity, one.down_d.shape[0]) for one in networks)
        return Thin(reads, parts, t[at + _READ], t[at + _READ_BIAS], t[at + _WRITE])
    return Square(reads, t[at + _KEY], t[at + _KEY_BIAS], t.get(at + _VALUE), networks)


def _networks(adapter: Adapter[Any], layer: int, place: str) -> tuple[Network, ...]:
    found = [network(part, layer, place) for part in adapter.parts]
    return tuple(one for one in found if one is not None)
