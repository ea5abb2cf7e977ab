"""A dense delta as a low-rank one: its truncated singular value decomposition, the best product of its rank.

    D = sum_i s_i u_i v_i^T      B A = sum_(i < r) s_i u_i v_i^T      |D - B A|^2 = sum_(i >= r) s_i^2

in the Frobenius norm (Eckart and Young 1936). Everything is computed in float64 and rounded once, to float32. Knows no
files and no models.

Legend for tensor names: N outputs, K inputs, S singular values, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from weft_adapters.unit_scaling import unit_scaling
from weft_registry.errors import InvalidInputError
from weft_registry.kinds.low_rank import MAX_RANK, PEFT_PREFIX, LowRankParams


@dataclass(frozen=True)
class Truncation:
    """How much of a delta is kept: a number of singular values, or as many as hold a share of the energy."""

    rank: int | None = None
    """At most so many at every module."""
    energy: float | None = None
    """The fewest whose squares sum to this share of all squares: the ranks then differ from module to module."""

    def __post_init__(self) -> None:
        if (self.rank is None) == (self.energy is None):
            raise InvalidInputError("say either a rank or an energy to keep")
        if self.rank is not None and not 1 <= self.rank <= MAX_RANK:
            raise InvalidInputError(f"rank: {self.rank}, expected 1 to {MAX_RANK}")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise InvalidInputError(f"energy: {self.energy}, expected a share above 0, at most 1")

    def kept(self, singular_S: Tensor, shape: tuple[int, int], module: str) -> int:
        """How many of these singular values (float64, falling) of a matrix of this shape are kept.

        Never one that is zero up to rounding. Raises `InvalidInputError` where the energy asks for a rank that no
        adapter may have.
        """
        if not len(singular_S) or singular_S[0] == 0:
            return 0
        floor = singular_S[0] * max(shape) * torch.finfo(torch.float64).eps
        found = int((singular_S > floor).sum())
        if self.rank is not None:
            return min(self.rank, found)
        assert self.energy is not None, "one of the two is given"
        share_S = singular_S.square().cumsum(0) / singular_S.square().sum()
        # The last share is 1 up to rounding, and so may be an energy of 1.
        needed = min(found, int((share_S < self.energy - 1e-12).sum()) + 1)
        if needed > MAX_RANK:
            raise InvalidInputError(
                f"{module}: an energy of {self.energy:g} takes rank {needed}, and an adapter has at most {MAX_RANK}; "
                "ask for less energy, or for a rank. Against int4 weights most of the energy is their rounding: take "
                "the difference to the original weights"
            )
        return needed

    def as_json(self) -> dict[str, str]:
        """For provenance: canonical JSON has no floats."""
        return {"rank": str(self.rank)} if self.energy is None else {"energy": repr(self.energy)}


@dataclass(frozen=True)
class ModuleError:
    """What truncation did to one module's delta."""

    rank: int
    delta: float
    """Frobenius norm of the delta."""
    left: float
    """Frobenius norm of what the stored factors leave of it."""

    @property
    def relative(self) -> float:
        """`left / delta`; 0 of nothing."""
        return self.left / self.delta if self.delta else 0.0


@dataclass(frozen=True, eq=False)
class Extracted:
    """A LoRA adapter made of deltas, with a scaling of 1."""

    params: LowRankParams
    tensors: Mapping[str, Tensor]
    """float32, under the artifact's names. A module whose delta is zero has none."""
    errors: Mapping[str, ModuleError]
    """By module; of every delta that was given."""

    @property
    def error(self) -> float:
        """The relative Frobenius error over all modules together."""
        delta = math.fsum(error.delta**2 for error in self.errors.values())
        left = math.fsum(error.left**2 for error in self.errors.values())
        return math.sqrt(left / delta) if delta else 0.0


def extract(deltas: Iterable[tuple[str, Tensor]], truncation: Truncation) -> Extracted:
    """The LoRA adapter nearest to `deltas`: (module, (N, K) of any float dtype), one at a time in memory.

    Raises `InvalidInputError` naming a delta that is not finite, and what `Truncation.kept` raises.
    """
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    errors: dict[str, ModuleError] = {}
    for module, delta_NK in deltas:
        wide_NK = delta_NK.double()
        norm = float(wide_NK.norm())
        if not math.isfinite(norm):
            raise InvalidInputError(f"the difference at {module} is not finite")
        if norm == 0:
            errors[module] = ModuleError(0, 0.0, 0.0)
            continue
        u_NS, singular_S, v_SK = torch.linalg.svd(wide_NK, full_matrices=False)
        rank = truncation.kept(singular_S, (wide_NK.shape[0], wide_NK.shape[1]), module)
        a_rK, b_Nr = balanced(u_NS, singular_S, v_SK, rank)
        left = float((wide_NK - b_Nr.double() @ a_rK.double()).norm())
        errors[module], ranks[module] = ModuleError(rank, norm, left), rank
        tensors |= named(module, a_rK, b_Nr)
    return Extracted(unit_scaling(ranks), tensors, errors)


def balanced(u_NS: Tensor, singular_S: Tensor, v_SK: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(A (r, K), B (N, r)) in float32 of a decomposition, the root of each singular value on either side.

    With all of it on one side, entries of A and B would differ by orders of magnitude, and a shorter dtype would
    round the small ones away.
    """
    root_r = singular_S[:rank].sqrt()
    return (root_r[:, None] * v_SK[:rank]).float(), (u_NS[:, :rank] * root_r).float()


def named(module: str, a_rK: Tensor, b_Nr: Tensor) -> dict[str, Tensor]:
    """The two factors under the artifact's names."""
    return {
        f"{PEFT_PREFIX}{module}.lora_A.weight": a_rK.contiguous(),
        f"{PEFT_PREFIX}{module}.lora_B.weight": b_Nr.contiguous(),
    }
