"""AdapterFusion: an attention over the outputs of several bottleneck adapters (Pfeiffer et al. 2021,
arXiv:2005.00247, section 3.2).

With u_i what part i would add for z:

    y <- y + V sum_i p_i u_i        p = softmax_i( (Q z + b_Q) . (K u_i + b_K) )

With q = Q z + b_Q: the product q . b_K is the same for every part and changes no p, and q . (K u) = (K^T q) . u, so K
is multiplied once a row, not once for each part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weft_adapters.int4 import Int4Weight
from weft_adapters.kinds.bottleneck_network import Network, add_rows, network, read
from weft_adapters.kinds.kind import Adapter, Kind, MergeRefusedError, SublayerPack, SublayerSite
from weft_adapters.segments import Segments
from weft_registry.errors import InvalidInputError
from weft_registry.kinds.bottleneck import BottleneckParams, sublayer_prefix
from weft_registry.kinds.fusion import FusionParams, FusionSchema, check_alike


@dataclass(frozen=True, eq=False)
class Fused:
    """One fusion at one sublayer: the stored tensors, not copies. P parts."""

    query_EE: Tensor
    query_E: Tensor
    key_EE: Tensor
    value_EE: Tensor | None
    networks: tuple[Network, ...]

    def delta(self, z_TE: Tensor) -> Tensor:
        """What is added for the rows that read `z_TE`: (T, E)."""
        u_PTE = torch.stack([one.delta(z_TE) for one in self.networks])
        q_TE = torch.addmm(self.query_E, z_TE, self.query_EE.t()) @ self.key_EE
        # In float32: the scores are sums over the whole hidden size, unscaled, and go into an exponential.
        score_PT = (u_PTE.float() * q_TE.float()).sum(-1)
        p_PT = score_PT.softmax(dim=0)
        mixed_TE = (p_PT[..., None] * u_PTE.float()).sum(0).to(u_PTE.dtype)
        return mixed_TE if self.value_EE is None else mixed_TE @ self.value_EE.t()


@dataclass(frozen=True, eq=False)
class FusionPack:
    """The active fusions at one sublayer, by adapter index. Each is computed over its own rows: of its three square
    products nothing can be shared with another."""

    fused: dict[int, Fused]
    size_bytes: int = 0

    def apply(self, input_TE: Tensor, residual_TE: Tensor, y_TE: Tensor, segments: Segments) -> None:
        """See `SublayerPack.apply`."""
        for index, fused in self.fused.items():
            if index in segments.counts:
                rows = segments.rows(index)
                reads, dtype = fused.networks[0].reads, fused.query_EE.dtype
                z_TE = read(reads, input_TE[rows], residual_TE[rows], y_TE[rows], dtype)
                add_rows(y_TE, rows, fused.delta(z_TE))


class Fusion(Kind[FusionParams]):
    """An attention over bottleneck adapters, which are its `parts`."""

    schema = FusionSchema()

    def check(self, adapter: Adapter[FusionParams]) -> None:
        """See `Kind.check`. Raises `InvalidInputError` unless its parts are those that it names."""
        wanted = [part.digest for part in adapter.params.parts]
        found = [part.digest for part in adapter.parts]
        if found != wanted:
            raise InvalidInputError(f"a fusion of {wanted} was given the parts {found}", reason="PART_REFUSED")
        for named, part in zip(adapter.params.parts, adapter.parts, strict=True):
            if not isinstance(part.params, BottleneckParams):
                raise InvalidInputError(f"{named} is of the kind {part.kind.name}", reason="PART_REFUSED")
            check_alike(adapter.params, named, part.params)

    def sublayer_pack(self, adapters: Sequence[Adapter[Any] | None], site: SublayerSite) -> SublayerPack | None:
        """See `Kind.sublayer_pack`."""
        found = {
            index: fused
            for index, adapter in enumerate(adapters)
            if adapter is not None and (fused := fused_at(adapter, site.layer, site.place)) is not None
        }
        return FusionPack(found) if found else None

    def overlay(self, module: str, weight: Int4Weight, adapter: Adapter[FusionParams]) -> None:
        """Refused: it is an attention over networks with non-linearities."""
        raise MergeRefusedError(
            "a fusion cannot be merged: it weighs the outputs of its parts anew for every token, which no weight of "
            "the base can hold; it is served in the batch beside any merged adapter"
        )


def fused_at(adapter: Adapter[FusionParams], layer: int, place: str) -> Fused | None:
    """A fusion at the end of a sublayer; None where it does not stand there."""
    if layer not in adapter.params.layers or place not in adapter.params.places:
        return None
    at = sublayer_prefix(layer, place)
    networks = [network(part, layer, place) for part in adapter.parts]
    return Fused(
        adapter.tensors[f"{at}query.weight"],
        adapter.tensors[f"{at}query.bias"],
        adapter.tensors[f"{at}key.weight"],
        adapter.tensors.get(f"{at}value.weight"),
        tuple(one for one in networks if one is not None),
    )
