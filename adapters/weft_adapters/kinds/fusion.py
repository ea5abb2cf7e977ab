"""AdapterFusion: an attention over the outputs of several bottleneck adapters (Pfeiffer et al. 2021,
arXiv:2005.00247, section 3.2).

With u_i what part i would add for z:

    y <- y + V sum_i p_i u_i        p = softmax_i( (Q z + b_Q) . (K u_i + b_K) )

Q, K, V and the parts' up-projections are multiplied with each other once, when a fusion is bound: `fused_networks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from weft_adapters.int4 import Int4Weight
from weft_adapters.kinds.fused_networks import fold, folded_at
from weft_adapters.kinds.fusion_pack import pack_fusions
from weft_adapters.kinds.kind import Adapter, BaseWeights, Kind, MergeRefusedError, SublayerPack, SublayerSite
from weft_registry.errors import InvalidInputError
from weft_registry.kinds.bottleneck import BottleneckParams
from weft_registry.kinds.fusion import FusionParams, FusionSchema, check_alike


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

    def prepare(self, adapter: Adapter[FusionParams], base: BaseWeights) -> Adapter[FusionParams]:
        """In the place of Q, K and V, what they and the parts multiply to. Raises `InvalidInputError` where a product
        overflows."""
        params = adapter.params
        folded: dict[str, Tensor] = {}
        for layer in params.layers:
            for place in params.places:
                folded |= fold(adapter, layer, place)
        return replace(adapter, tensors=folded)

    def sublayer_pack(self, adapters: Sequence[Adapter[Any] | None], site: SublayerSite) -> SublayerPack | None:
        """See `Kind.sublayer_pack`."""
        found = {
            index: fused
            for index, adapter in enumerate(adapters)
            if adapter is not None and (fused := folded_at(adapter, site.layer, site.place)) is not None
        }
        return pack_fusions(found)

    def overlay(self, module: str, weight: Int4Weight, adapter: Adapter[FusionParams]) -> None:
        """Refused: it is an attention over networks with non-linearities."""
        raise MergeRefusedError(
            "a fusion cannot be merged: it weighs the outputs of its parts anew for every token, which no weight of "
            "the base can hold; it is served in the batch beside any merged adapter"
        )
