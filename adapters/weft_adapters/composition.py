"""Several low-rank adapters as one: `y = W x + sum_i w_i s_i B_i A_i x`, by standing their factors side by side.

    sum_i w_i s_i B_i A_i = [w_1 s_1 B_1 ... w_n s_n B_n] [A_1; ...; A_n]

Exact, whatever the ranks, the scalings and the modules; the rank is the sum of the ranks. It is what PEFT's
`add_weighted_adapter` computes with `combination_type="cat"`.

Of QA-LoRA adapters alone the sum is a QA-LoRA adapter: their A all read the same pooled input. Beside a LoRA adapter
they become LoRA: `A pool(x) = repeat(A, group size) x` for the sum over each group. With a DoRA adapter among the parts
the sum is a `ScaledSum`, which says how.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weft_adapters.extraction import named
from weft_adapters.kinds import KINDS
from weft_adapters.kinds.kind import Adapter, Kind, OutputScale
from weft_adapters.kinds.scaled_sum import SCALED_SUM, scale_tensors
from weft_adapters.unit_scaling import unit_scaling
from weft_registry.errors import InvalidInputError, UnsupportedError
from weft_registry.kinds.qalora import QaLoraParams

KINDS_THAT_SUM = ("lora", "qalora", "dora")


@dataclass(frozen=True, eq=False)
class WeightedFactors:
    """One part at one module, its weight and scaling apart: `delta = weight * scaling * B A`."""

    a_rK: Tensor
    b_Nr: Tensor
    scaling: float
    weight: float
    output: OutputScale | None = None
    """What the part does to the module's output besides."""

    @property
    def scaled_Nr(self) -> Tensor:
        """`weight * scaling * B`, multiplied in float32 and rounded once."""
        return self.scaled_by(1.0)

    def scaled_by(self, factor_N: Tensor | float) -> Tensor:
        """`factor * weight * scaling * B`, the factor one for each output, likewise."""
        factor = factor_N[:, None] if isinstance(factor_N, Tensor) else factor_N
        return (self.b_Nr.float() * (self.weight * self.scaling) * factor).to(self.b_Nr.dtype)


def compose_low_rank(parts: Sequence[tuple[Adapter[Any], float]], digest: str) -> Adapter[Any]:
    """One adapter that does what `parts`, of the kinds lora, qalora and dora, do together. See `Kind.compose`.

    A part of weight 0 leaves no trace. Raises `InvalidInputError` for a weight that is not finite or a sum that
    overflows, `UnsupportedError` naming a part whose kind does more than add a low-rank product and scale.
    """
    present = [(adapter, weight) for adapter, weight in checked(parts) if weight != 0]
    kind, group_size = common_kind([adapter for adapter, _ in present] or [adapter for adapter, _ in parts])
    if any(adapter.kind.scales for adapter, _ in present):
        kind, group_size = SCALED_SUM, None
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for module in modules_of([adapter for adapter, _ in present]):
        found = list(factors_at(present, module, pooled=group_size is not None))
        a_RK = torch.cat([factors.a_rK for factors in found])
        if any(factors.output is not None for factors in found):
            b_NR, scales = _scaled(module, found)
            tensors |= scales
        else:
            b_NR = torch.cat([factors.scaled_Nr for factors in found], dim=1)
        tensors |= named(module, a_RK, b_NR)
        ranks[module] = a_RK.shape[0]
    params = unit_scaling(ranks)
    if group_size is not None:
        params = QaLoraParams(**vars(params), group_size=group_size)
    composed: Adapter[Any] = Adapter(digest, kind, params, tensors)
    kind.check(composed)
    return composed


def _scaled(module: str, parts: Sequence[WeightedFactors]) -> tuple[Tensor, dict[str, Tensor]]:
    """B (N, R) and the scale of a sum in which some parts scale the output: see `weft_adapters.kinds.scaled_sum`."""
    scales = [None if part.output is None else part.output.scale_N.float() for part in parts]
    whole_N = torch.ones(parts[0].b_Nr.shape[0], device=parts[0].b_Nr.device)
    shift_N: Tensor | None = None
    for part, scale_N in zip(parts, scales, strict=True):
        if part.output is None or scale_N is None:
            continue
        whole_N = whole_N + part.weight * (scale_N - 1)
        if part.output.shift_N is not None:
            shift_N = part.weight * part.output.shift_N.float() + (0.0 if shift_N is None else shift_N)
    zero_N = whole_N == 0
    if bool(zero_N.any()):
        raise InvalidInputError(
            f"{module}: with these weights the parts' scales cancel out at output {int(zero_N.nonzero()[0])}; change "
            "one of them a little"
        )
    factors = [1 / whole_N if scale_N is None else scale_N / whole_N for scale_N in scales]
    b_NR = torch.cat([part.scaled_by(factor_N) for part, factor_N in zip(parts, factors, strict=True)], dim=1)
    return b_NR, scale_tensors(module, whole_N, shift_N)


def checked(
    parts: Sequence[tuple[Adapter[Any], float]], kinds: tuple[str, ...] = KINDS_THAT_SUM
) -> Sequence[tuple[Adapter[Any], float]]:
    """`parts`, if they are of these kinds and can be summed. Raises as `compose_low_rank` does."""
    if not parts:
        raise InvalidInputError("nothing to compose: name at least one adapter")
    for adapter, weight in parts:
        if not math.isfinite(weight):
            raise InvalidInputError(f"the weight of {adapter.digest} is {weight}; expected a finite number")
        if adapter.kind is not KINDS.get(adapter.kind.name) or adapter.kind.name not in kinds:
            raise UnsupportedError(
                f"{adapter.digest} is of kind {adapter.kind.name}; only adapters of the kinds {', '.join(kinds)} can "
                "be summed: leave it out, or wear it in a request of its own",
                reason="NOT_COMPOSABLE",
                metadata={"adapter": adapter.digest, "kind": adapter.kind.name},
            )
    return parts


def common_kind(adapters: Sequence[Adapter[Any]]) -> tuple[Kind[Any], int | None]:
    """(kind, group size) of a sum of adapters: qalora's if all pool by the same groups, else lora and None."""
    groups = {adapter.params.group_size if _pools(adapter) else None for adapter in adapters}
    group_size = next(iter(groups)) if len(groups) == 1 else None
    return KINDS["lora" if group_size is None else "qalora"], group_size


def modules_of(adapters: Sequence[Adapter[Any]]) -> tuple[str, ...]:
    """The modules that any of them adapts, in order of first appearance."""
    return tuple(dict.fromkeys(module for adapter in adapters for module in adapter.params.target_modules))


def factors_at(parts: Sequence[tuple[Adapter[Any], float]], module: str, *, pooled: bool) -> Iterator[WeightedFactors]:
    """The factors of the parts that adapt `module`; A over the pooled input if `pooled`, else over the input itself."""
    for adapter, weight in parts:
        factors = adapter.kind.factors(adapter, module)
        if factors is None:
            continue
        a_rK = factors.a_rK
        if factors.pooled and not pooled:
            a_rK = a_rK.repeat_interleave(adapter.params.group_size, dim=1)
        output = adapter.kind.output_scale(adapter, module)
        yield WeightedFactors(a_rK, factors.b_Nr, factors.scaling, weight, output)


def _pools(adapter: Adapter[Any]) -> bool:
    return isinstance(adapter.params, QaLoraParams)
