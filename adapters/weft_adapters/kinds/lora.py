"""LoRA: `y = W x + s B A x` (Hu et al. 2021, arXiv:2106.09685, eq. 3), rsLoRA scaling included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from weft_adapters.int4 import Int4Weight
from weft_adapters.kinds.kind import Adapter, Kind, LinearPack, LinearSite, LowRankFactors
from weft_adapters.kinds.low_rank import check_scaling, low_rank_factors, pack_low_rank
from weft_registry.kinds.lora import LoraSchema
from weft_registry.kinds.low_rank import LowRankParams


class Lora(Kind[LowRankParams]):
    """LoRA over any subset of the base's linear modules, ranks free to differ."""

    schema = LoraSchema()
    mergeable = True
    low_rank = True

    def check(self, adapter: Adapter[Any]) -> None:
        """See `Kind.check`."""
        check_scaling(adapter)

    def factors(self, adapter: Adapter[Any], module: str) -> LowRankFactors | None:
        """See `Kind.factors`."""
        found = low_rank_factors(adapter, module)
        return None if found is None else LowRankFactors(*found, pooled=False)

    def pack(self, adapters: Sequence[Adapter[Any] | None], site: LinearSite) -> LinearPack | None:
        """See `Kind.pack`."""
        return pack_low_rank(adapters, site, lambda params: 1)

    def compose(self, parts: Sequence[tuple[Adapter[Any], float]], digest: str) -> Adapter[Any]:
        """See `Kind.compose`: factors side by side."""
        # On use, because it knows every kind.
        from weft_adapters.composition import compose_low_rank

        return compose_low_rank(parts, digest)

    def overlay(self, module: str, weight: Int4Weight, adapter: Adapter[LowRankParams]) -> Tensor | None:
        """`W + s B A`, dense: rounding to the int4 grid would destroy the delta, which is below the grid's step."""
        factors = low_rank_factors(adapter, module)
        if factors is None:
            return None
        a_rK, b_Nr, scaling = factors
        return weight.dequantize().addmm_(b_Nr.float(), a_rK.float(), alpha=scaling)
