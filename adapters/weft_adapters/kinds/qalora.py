"""QA-LoRA: `y = W x + s B A pool(x)`, pool the SUM over each quantization group (Xu et al. 2023, arXiv:2309.14717).

Because a group shares one minimum, `s B A` has exactly the minimum's shape (N, G), and merging is one addition:

    W x = sum_G (scale_G code_G . x_G + minimum_G pool(x)_G)    so    minimum + s B A    is W with the adapter in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weft_adapters.int4 import Int4Weight
from weft_adapters.kinds.kind import Adapter, Kind, LinearPack, LinearSite, LowRankFactors
from weft_adapters.kinds.low_rank import check_scaling, low_rank_factors, pack_low_rank
from weft_registry.kinds.qalora import QaLoraParams, QaLoraSchema


class QaLora(Kind[QaLoraParams]):
    """QA-LoRA over any subset of the base's linear modules."""

    schema = QaLoraSchema()
    mergeable = True
    low_rank = True

    def check(self, adapter: Adapter[Any]) -> None:
        """See `Kind.check`."""
        check_scaling(adapter)

    def factors(self, adapter: Adapter[Any], module: str) -> LowRankFactors | None:
        """See `Kind.factors`."""
        found = low_rank_factors(adapter, module)
        return None if found is None else LowRankFactors(*found, pooled=True)

    def pack(self, adapters: Sequence[Adapter[Any] | None], site: LinearSite) -> LinearPack | None:
        """See `Kind.pack`. Binding made sure that every adapter pools by the base's group size."""
        return pack_low_rank(adapters, site, lambda params: params.group_size)  # type: ignore[attr-defined]

    def compose(self, parts: Sequence[tuple[Adapter[Any], float]], digest: str) -> Adapter[Any]:
        """See `Kind.compose`: factors side by side."""
        # On use, because it knows every kind.
        from weft_adapters.composition import compose_low_rank

        return compose_low_rank(parts, digest)

    def overlay(self, module: str, weight: Int4Weight, adapter: Adapter[QaLoraParams]) -> Int4Weight | None:
        """The same codes and scales over `minimum + s B A`, in float32."""
        factors = low_rank_factors(adapter, module)
        if factors is None:
            return None
        a_rG, b_Nr, scaling = factors
        return weight.with_minimum(weight.minimum_NG.float().addmm(b_Nr.float(), a_rG.float(), alpha=scaling))
