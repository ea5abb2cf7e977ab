"""The batched low-rank operator that LoRA and QA-LoRA share: `y[rows(i)] += x[rows(i)] @ A_i^T @ (s_i B_i)^T`.

Two ways to compute it, the same up to rounding:

- rank-concat: one product with every active A side by side, a mask that keeps each row's own columns, one product
  with every B. Two large products whatever the number of adapters; the work grows with the sum of the ranks.
- segments: two small products for each adapter, over its own rows. No work is wasted; each adapter costs two calls.

Ranks need not be equal and nothing is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weft_adapters.kinds.kind import Adapter, LinearSite
from weft_adapters.products import Product, dense_product
from weft_adapters.segments import Segments
from weft_registry.errors import InvalidInputError
from weft_registry.kinds.low_rank import PEFT_PREFIX, LowRankParams

# What one adapter's pair of calls costs beyond its arithmetic, as arithmetic: about 35 us at about 300 GFLOP/s,
# measured on a 2-core CPU. It only chooses between two ways to the same answer.
_CALL_FLOPS = 1.0e7


@dataclass(frozen=True, eq=False)
class _Block:
    """One adapter's columns at one module of the site."""

    index: int
    ranks: slice
    outputs: slice
    a_rK: Tensor
    """The adapter's own A, not a copy."""


@dataclass(frozen=True, eq=False)
class LowRankPack:
    """The active adapters' A and scaled B at one site. Implements `weft_adapters.kinds.kind.LinearPack`."""

    a_RK: Product
    """Multiplies by every active A at once: (T, K) to (T, R)."""
    b_RN: Tensor
    """Block structured: row r is zero outside the outputs of the module that rank r belongs to."""
    owner_R: Tensor
    """int32 (R,): the adapter index that owns each rank."""
    layout: tuple[tuple[int, int], ...]
    """`owner_R` as (adapter, ranks) runs: its identity by value."""
    blocks: tuple[_Block, ...]
    pool: int
    """Inputs summed into one before A: the group size of QA-LoRA, 1 for LoRA."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the stacks."""
        return self.a_RK.size_bytes + self.b_RN.nbytes

    def apply(self, x_TK: Tensor, y_TN: Tensor, segments: Segments) -> None:
        """See `LinearPack.apply`. `x_TK` is (T, K * pool)."""
        owners = {block.index for block in self.blocks}
        present = segments.counts.keys() & owners
        if not present:
            return
        if self.pool > 1:
            x_TK = x_TK.view(x_TK.shape[0], -1, self.pool).sum(-1)
        if self._wasted_flops(segments) <= _CALL_FLOPS * len(present):
            h_TR = self.a_RK(x_TK)
            alone = len(owners) == 1 and sum(segments.counts[i] for i in owners) == segments.num_rows
            if not alone:
                # Filled, not multiplied by zero: a neighbour's overflow times zero would be NaN in this row.
                h_TR.masked_fill_(segments.foreign(self.owner_R, self.layout), 0)
            y_TN.addmm_(h_TR, self.b_RN)
            return
        for block in self.blocks:
            if block.index in present:
                self._apply_block(block, x_TK, y_TN, segments)

    def _apply_block(self, block: _Block, x_TK: Tensor, y_TN: Tensor, segments: Segments) -> None:
        rows = segments.rows(block.index)
        delta = (x_TK[rows] @ block.a_rK.t()) @ self.b_RN[block.ranks, block.outputs]
        if isinstance(rows, slice):
            y_TN[rows, block.outputs] += delta
        else:
            y_TN[:, block.outputs].index_add_(0, rows, delta)

    def _wasted_flops(self, segments: Segments) -> float:
        """What rank-concat computes only to mask it away, or to multiply by the zeros of `b_RN`."""
        (n_rank, n_out), n_in = self.b_RN.shape, self.blocks[0].a_rK.shape[1]
        useful: int = sum(
            segments.counts.get(block.index, 0)
            * (block.ranks.stop - block.ranks.start)
            * (n_in + block.outputs.stop - block.outputs.start)
            for block in self.blocks
        )
        return 2.0 * (segments.num_rows * n_rank * (n_in + n_out) - useful)


def pack_low_rank(
    adapters: Sequence[Adapter[Any] | None], site: LinearSite, pool: Callable[[LowRankParams], int]
) -> LowRankPack | None:
    """Stacks the adapters' A and scaled B at `site`; None when none of them touches it.

    Ranks lie module by module, and within a module adapter by adapter, so that neighbours in `b_RN` share outputs.
    """
    b_parts: list[Tensor] = []
    blocks: list[_Block] = []
    start = out_start = pool_size = 0
    for module, n_out in zip(site.modules, site.out_features, strict=True):
        outputs = slice(out_start, out_start + n_out)
        out_start += n_out
        for index, adapter in enumerate(adapters):
            if adapter is None or (factors := low_rank_factors(adapter, module)) is None:
                continue
            a_rK, b_Nr, scaling = factors
            ranks = slice(start, start + a_rK.shape[0])
            start = ranks.stop
            b_parts.append(_scaled(b_Nr, scaling))
            blocks.append(_Block(index, ranks, outputs, a_rK))
            pool_size = pool(adapter.params)
    if not blocks:
        return None
    a_RK = torch.cat([block.a_rK for block in blocks])
    b_RN = a_RK.new_zeros(start, out_start)
    for block, b_Nr in zip(blocks, b_parts, strict=True):
        b_RN[block.ranks, block.outputs] = b_Nr.t()
    layout = tuple((block.index, block.ranks.stop - block.ranks.start) for block in blocks)
    owner_R = torch.tensor([i for i, n in layout for _ in range(n)], dtype=torch.int32, device=a_RK.device)
    return LowRankPack(dense_product(a_RK), b_RN, owner_R, layout, tuple(blocks), pool_size)


def low_rank_factors(adapter: Adapter[Any], module: str) -> tuple[Tensor, Tensor, float] | None:
    """(A, B, scaling) of an adapter at a module, or None where it has none."""
    a_rK = adapter.tensors.get(f"{PEFT_PREFIX}{module}.lora_A.weight")
    if a_rK is None:
        return None
    return a_rK, adapter.tensors[f"{PEFT_PREFIX}{module}.lora_B.weight"], adapter.params.scaling(module)


def check_scaling(adapter: Adapter[Any]) -> None:
    """Raises `InvalidInputError` if a scaled B overflows: in a shared product, zero times infinity would be NaN in the
    rows of others."""
    modules: dict[float, dict[str, Tensor]] = {}
    for module in adapter.params.target_modules:
        factors = low_rank_factors(adapter, module)
        if factors is not None:
            modules.setdefault(factors[2], {})[module] = factors[1]
    for scaling, b_by_module in modules.items():
        # All at once, since all are right nearly always.
        if _overflows(torch.cat([b_Nr.flatten() for b_Nr in b_by_module.values()]), scaling):
            module = next(module for module, b_Nr in b_by_module.items() if _overflows(b_Nr, scaling))
            raise InvalidInputError(f"lora_B of {module} times its scaling of {scaling:g} is not finite")


def _overflows(b: Tensor, scaling: float) -> bool:
    # Scaling and rounding keep the order: where the extremes are finite, everything is.
    return not bool(_scaled(torch.stack(b.aminmax()), scaling).isfinite().all())


def _scaled(b_Nr: Tensor, scaling: float) -> Tensor:
    # Folded in once here, in float32, rather than into every step's product.
    return (b_Nr.float() * scaling).to(b_Nr.dtype)
