"""Bottleneck adapters: `y <- y + s (U f(D z + d) + u)` at the end of a sublayer, before the residual is added.

Sources: Houlsby et al. 2019 (arXiv:1902.00751), Pfeiffer et al. 2020 (arXiv:2005.00052), He et al. 2022
(arXiv:2110.04366). Several are composed by stacking them in order, as MAD-X (arXiv:2005.00052) puts a task adapter on a
language adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from weft_adapters.int4 import Int4Weight
from weft_adapters.kinds.bottleneck_network import check_scaling, pack_networks
from weft_adapters.kinds.kind import Adapter, Kind, MergeRefusedError, SublayerPack, SublayerSite
from weft_registry.errors import UnsupportedError
from weft_registry.kinds.bottleneck import BottleneckParams, BottleneckSchema


class Bottleneck(Kind[BottleneckParams]):
    """Bottlenecks of any size after attention, after the MLP, or both."""

    schema = BottleneckSchema()

    def check(self, adapter: Adapter[BottleneckParams]) -> None:
        """See `Kind.check`."""
        check_scaling(adapter)

    def sublayer_pack(self, adapters: Sequence[Adapter[Any] | None], site: SublayerSite) -> SublayerPack | None:
        """See `Kind.sublayer_pack`."""
        return pack_networks(adapters, site)

    def compose(self, parts: Sequence[tuple[Adapter[Any], float]], digest: str) -> Adapter[BottleneckParams]:
        """The parts as a stack: each reads what the ones before it have left, and adds its weight's share.

        Raises `UnsupportedError` for a part of another kind, `InvalidInputError` for a weight that overflows.
        """
        chain: list[Adapter[BottleneckParams]] = []
        for part, weight in parts:
            if part.kind is not self:
                raise UnsupportedError(
                    f"{part.digest} is of kind {part.kind.name}, which cannot stand in a stack of {self.name} adapters"
                    ": leave it out, or wear it in a request of its own",
                    reason="NOT_COMPOSABLE",
                )
            for one in part.parts or (part,):
                weighted = replace(one, params=replace(one.params, scaling=one.params.scaling * weight))
                self.check(weighted)
                chain.append(weighted)
        return Adapter(digest, self, chain[0].params, {}, tuple(chain))

    def overlay(self, module: str, weight: Int4Weight, adapter: Adapter[BottleneckParams]) -> None:
        """Refused: there is a non-linearity between D and U."""
        raise MergeRefusedError(
            "a bottleneck adapter cannot be merged: between its two projections stands a non-linearity, which no "
            "weight of the base can hold; it is served in the batch beside any merged adapter"
        )
