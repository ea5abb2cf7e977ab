"""DoRA: `y = m / ||W + s B A|| (W x + s B A x) + b` (Liu et al. 2024, arXiv:2402.09353, eq. 5), W the dequantized base.

With g = m / ||W + s B A||, one factor an output, that is LoRA's delta and a scale over the whole output:

    y = g (W x + b + s B A x) + (1 - g) b

The norms follow from the base's weights, so they are computed once, when an adapter is bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from weft_adapters.int4 import Int4Weight
from weft_adapters.kinds.kind import (
    Adapter,
    BaseWeights,
    Kind,
    LinearPack,
    LinearSite,
    LowRankFactors,
    OutputScale,
)
from weft_adapters.kinds.low_rank import check_scaling, low_rank_factors, pack_low_rank
from weft_registry.errors import InvalidInputError
from weft_registry.kinds.dora import MAGNITUDE, DoraSchema
from weft_registry.kinds.low_rank import PEFT_PREFIX, LowRankParams

# Stored names begin with PEFT's prefix, so no stored tensor can be called so.
_SCALE, _SHIFT = ".dora_scale", ".dora_shift"


class Dora(Kind[LowRankParams]):
    """DoRA over any subset of the base's linear modules, ranks free to differ."""

    schema = DoraSchema()
    mergeable = True
    low_rank = True
    scales = True

    def check(self, adapter: Adapter[Any]) -> None:
        """See `Kind.check`."""
        check_scaling(adapter)

    def prepare(self, adapter: Adapter[LowRankParams], base: BaseWeights) -> Adapter[LowRankParams]:
        """Adds g (N,) of every module and, where the module has a bias, (1 - g) b, both in float32.

        Raises `InvalidInputError` where an output's weights are all zero: they have no direction to scale.
        """
        added: dict[str, Tensor] = {}
        for module in adapter.params.target_modules:
            factors = low_rank_factors(adapter, module)
            assert factors is not None, module
            device = factors[0].device
            scale_N = _scale(_adapted(base.int4(module).to(device), factors), adapter, module)
            added[module + _SCALE] = scale_N
            bias_N = base.bias(module)
            if bias_N is not None:
                added[module + _SHIFT] = (1 - scale_N) * bias_N.to(device).float()
        return replace(adapter, tensors={**adapter.tensors, **added})

    def factors(self, adapter: Adapter[Any], module: str) -> LowRankFactors | None:
        """See `Kind.factors`."""
        found = low_rank_factors(adapter, module)
        return None if found is None else LowRankFactors(*found, pooled=False)

    def output_scale(self, adapter: Adapter[Any], module: str) -> OutputScale | None:
        """See `Kind.output_scale`."""
        if PEFT_PREFIX + module + MAGNITUDE not in adapter.tensors:
            return None
        return OutputScale(adapter.tensors[module + _SCALE], adapter.tensors.get(module + _SHIFT))

    def pack(self, adapters: Sequence[Adapter[Any] | None], site: LinearSite) -> LinearPack | None:
        """See `Kind.pack`: LoRA's."""
        return pack_low_rank(adapters, site, lambda params: 1)

    def compose(self, parts: Sequence[tuple[Adapter[Any], float]], digest: str) -> Adapter[Any]:
        """See `Kind.compose`: factors side by side."""
        # On use, because it knows every kind.
        from weft_adapters.composition import compose_low_rank

        return compose_low_rank(parts, digest)

    def overlay(self, module: str, weight: Int4Weight, adapter: Adapter[LowRankParams]) -> Tensor | None:
        """`g (W + s B A)`, dense: the delta is below the int4 grid's step. The bias stays."""
        factors = low_rank_factors(adapter, module)
        if factors is None:
            return None
        adapted_NK = _adapted(weight, factors)
        return adapted_NK.mul_(_scale(adapted_NK, adapter, module)[:, None])


def _adapted(weight: Int4Weight, factors: tuple[Tensor, Tensor, float]) -> Tensor:
    """`W + s B A` in float32."""
    a_rK, b_Nr, scaling = factors
    return weight.dequantize().addmm_(b_Nr.float(), a_rK.float(), alpha=scaling)


def _scale(adapted_NK: Tensor, adapter: Adapter[Any], module: str) -> Tensor:
    """g (N,) in float32."""
    magnitude_N = adapter.tensors[PEFT_PREFIX + module + MAGNITUDE].float()
    scale_N: Tensor = magnitude_N / torch.linalg.vector_norm(adapted_NK, dim=1)
    if not bool(scale_N.isfinite().all()):
        output = int(scale_N.isfinite().logical_not().nonzero()[0])
        raise InvalidInputError(
            f"{module}: the magnitude of output {output} over the norm of its adapted weights is not finite: the "
            "weights are all zero there, or too small"
        )
    return scale_N
