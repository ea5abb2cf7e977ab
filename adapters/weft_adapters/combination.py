"""Several low-rank adapters merged into one, offline: sums, and merges that first drop or outvote entries.

| method | what is merged | how |
| --- | --- | --- |
| `cat` | the deltas | their exact sum; the rank is the sum of the ranks |
| `svd` | the deltas | their sum, truncated to `rank` |
| `linear` | A and B apart | sums of `sqrt(w s) A` and `sqrt(w s) B`: cheap and rough |
| `ties` | A and B apart | keep the largest entries, elect a sign, average those that agree (arXiv:2306.01708) |
| `dare_linear`, `dare_ties` | A and B apart | drop entries at random and rescale (arXiv:2311.03099), then as above |
| `ties_svd`, `dare_linear_svd`, `dare_ties_svd` | the deltas | the same, as the papers have it, then truncated |

The definitions, down to the order in which DARE draws, are those of PEFT's `add_weighted_adapter` (0.21), so that the
same parts make the same adapter. One difference: where PEFT copies rsLoRA's scaling from the first part onto a result
that has all scalings folded in already, the result here has a scaling of 1.

Legend: P parts, N outputs, K inputs, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weft_adapters.composition import WeightedFactors, checked, common_kind, factors_at, modules_of
from weft_adapters.extraction import Truncation, balanced, named
from weft_adapters.kinds.kind import Adapter
from weft_adapters.unit_scaling import unit_scaling
from weft_registry.errors import InvalidInputError
from weft_registry.kinds.low_rank import MAX_RANK
from weft_registry.kinds.qalora import QaLoraParams

METHODS = (
    "linear",
    "cat",
    "svd",
    "ties",
    "dare_linear",
    "dare_ties",
    "ties_svd",
    "dare_linear_svd",
    "dare_ties_svd",
)


KINDS_THAT_COMBINE = ("lora", "qalora")


@dataclass(frozen=True)
class Recipe:
    """How parts are merged. A setting that the method does not have is refused."""

    method: str
    """One of `METHODS`."""
    density: float | None = None
    """Share of the entries kept: for ties and dare."""
    seed: int | None = None
    """Of DARE's draws; None: 0."""
    rank: int | None = None
    """Of the result, for the methods that end in svd; None: the highest rank of any part."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InvalidInputError(f"method: {self.method!r} is not one of {', '.join(METHODS)}")
        if self.sparse != (self.density is not None):
            raise InvalidInputError(
                f"density: {self.method} {'needs one: the share of entries to keep' if self.sparse else 'has none'}"
            )
        if self.density is not None and not 0 < self.density <= 1:
            raise InvalidInputError(f"density: {self.density}, expected a share above 0, at most 1")
        if self.seed is not None and not self.random:
            raise InvalidInputError(f"seed: {self.method} draws nothing; only the dare methods do")
        if self.rank is not None and not self.truncated:
            raise InvalidInputError(f"rank: that of {self.method} follows from the parts; only svd truncates")
        if self.rank is not None and not 1 <= self.rank <= MAX_RANK:
            raise InvalidInputError(f"rank: {self.rank}, expected 1 to {MAX_RANK}")

    @property
    def random(self) -> bool:
        """Whether entries are dropped at random."""
        return self.method.startswith("dare")

    @property
    def sparse(self) -> bool:
        """Whether entries are dropped."""
        return self.random or self.method.startswith("ties")

    @property
    def truncated(self) -> bool:
        """Whether the deltas are merged and decomposed again."""
        return self.method.endswith("svd")

    def as_json(self) -> dict[str, str]:
        """For provenance: what was set, and the seed that was used."""
        given = {"density": self.density, "seed": self.seed or 0 if self.random else None, "rank": self.rank}
        return {"method": self.method, **{key: repr(value) for key, value in given.items() if value is not None}}


@dataclass(frozen=True, eq=False)
class Combined:
    """The merged adapter, with a scaling of 1."""

    kind: str
    params: Any
    tensors: Mapping[str, Tensor]
    """float32, under the artifact's names."""


def combine(parts: Sequence[tuple[Adapter[Any], float]], recipe: Recipe, modules: Sequence[str]) -> Combined:
    """Merges `parts`, bound in float32 to one base whose linear modules, in model order, are `modules`.

    A module that only some parts adapt is merged from those. Parts of kind qalora alone make a qalora adapter; mixed
    with lora they are lora adapters. Raises `InvalidInputError` naming a module whose ranks cannot be merged, of which
    the density keeps nothing, or whose result is not finite, and for parts of which nothing is left at any module; and
    what `checked` raises.
    """
    adapters = [adapter for adapter, _ in checked(parts, KINDS_THAT_COMBINE)]
    kind, group_size = common_kind(adapters)
    adapted = set(modules_of(adapters))
    generator = torch.Generator().manual_seed(recipe.seed or 0)
    highest = max(adapter.params.rank(module) for adapter in adapters for module in adapter.params.target_modules)
    truncation = Truncation(rank=min(recipe.rank or highest, MAX_RANK))
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    nothing_left = True
    if recipe.density is not None:
        factors = ((module, next(factors_at(parts, module, pooled=group_size is not None))) for module in adapted)
        _check_density(recipe.density, factors, products=recipe.truncated)
    for module in (module for module in modules if module in adapted):
        found = list(factors_at(parts, module, pooled=group_size is not None))
        a_rK, b_Nr = _merged(module, found, recipe, truncation, generator)
        if not bool(a_rK.isfinite().all() and b_Nr.isfinite().all()):
            raise InvalidInputError(f"{module}: the merged factors are not finite; give smaller weights")
        if a_rK.shape[0] > MAX_RANK:
            raise InvalidInputError(
                f"{module}: rank {a_rK.shape[0]}, and an adapter has at most {MAX_RANK}; use svd with a rank"
            )
        if a_rK.shape[0]:
            tensors |= named(module, a_rK, b_Nr)
            ranks[module] = a_rK.shape[0]
            nothing_left = nothing_left and _is_zero(a_rK, b_Nr)
    if nothing_left:
        way_out = "other weights, or a higher density" if recipe.sparse else "other weights"
        raise InvalidInputError(f"the parts cancel out: nothing is left of any module; give {way_out}")
    params = unit_scaling(ranks)
    if group_size is not None:
        params = QaLoraParams(**vars(params), group_size=group_size)
    return Combined(kind.name, params, tensors)


def _merged(
    module: str,
    parts: Sequence[WeightedFactors],
    recipe: Recipe,
    truncation: Truncation,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    if recipe.method == "cat":
        return torch.cat([part.a_rK for part in parts]), torch.cat([part.scaled_Nr for part in parts], dim=1)
    if recipe.method == "svd":
        return _truncated_sum(module, parts, truncation)
    if recipe.truncated:
        deltas_PNK = torch.stack([(part.b_Nr @ part.a_rK) * part.scaling for part in parts])
        weights_P = torch.tensor([part.weight for part in parts])
        delta_NK = _sparse_merge(deltas_PNK, weights_P, recipe, generator)
        u, s, v = torch.linalg.svd(delta_NK.double(), full_matrices=False)
        return balanced(u, s, v, truncation.kept(s, (delta_NK.shape[0], delta_NK.shape[1]), module))
    ranks = sorted({part.a_rK.shape[0] for part in parts})
    if len(ranks) > 1:
        raise InvalidInputError(
            f"{module}: {recipe.method} adds A to A and B to B, so the ranks must be equal, and the parts have "
            f"{', '.join(map(str, ranks))}; use cat or svd"
        )
    shares = [part.weight * part.scaling for part in parts]
    # The sign goes to one side only: on both it would cancel.
    to_a_P = torch.tensor([math.copysign(math.sqrt(abs(share)), share) for share in shares])
    to_b_P = torch.tensor([math.sqrt(abs(share)) for share in shares])
    a_rK = _sparse_merge(torch.stack([part.a_rK for part in parts]), to_a_P, recipe, generator)
    return a_rK, _sparse_merge(torch.stack([part.b_Nr for part in parts]), to_b_P, recipe, generator)


def _check_density(density: float, factors: Iterable[tuple[str, WeightedFactors]], *, products: bool) -> None:
    """Raises where not one entry of a tensor would be kept, by DARE on average: of A, of B, or of `products`."""
    sizes: list[tuple[int, str]] = []
    for module, part in factors:
        if products:
            sizes.append((part.b_Nr.shape[0] * part.a_rK.shape[1], f"the product at {module}"))
        else:
            sizes += [(part.a_rK.numel(), f"A at {module}"), (part.b_Nr.numel(), f"B at {module}")]
    least, which = min(sizes)
    if int(density * least) == 0:
        raise InvalidInputError(
            f"density: {density:g} keeps none of the {least} entries of {which}; the smallest that keeps one of every "
            f"tensor is {_rounded_up(1 / least):g}"
        )


def _rounded_up(share: float) -> float:
    """To three significant digits, so that `share` is certainly reached."""
    unit = 10.0 ** (math.floor(math.log10(share)) - 2)
    return float(f"{(math.floor(share / unit) + 1) * unit:.3g}")


def _is_zero(a_rK: Tensor, b_Nr: Tensor) -> bool:
    """Whether `B A` is nothing but the rounding of its float32 factors."""
    a_rK, b_Nr = a_rK.double(), b_Nr.double()
    # |B A|^2 = <B^T B, A A^T>, which needs no product of the module's size.
    b_rr, a_rr = b_Nr.t() @ b_Nr, a_rK @ a_rK.t()
    most = (b_rr.diagonal() * a_rr.diagonal()).sqrt().sum()
    return bool((b_rr * a_rr).sum() <= (torch.finfo(torch.float32).eps * most).square())


def _truncated_sum(module: str, parts: Sequence[WeightedFactors], truncation: Truncation) -> tuple[Tensor, Tensor]:
    """The truncated decomposition of `B A`, from the factors alone: `B = Q R`, `A^T = P S`, and `R S^T` is small."""
    b_NR = torch.cat([part.b_Nr.double() * (part.weight * part.scaling) for part in parts], dim=1)
    a_RK = torch.cat([part.a_rK.double() for part in parts])
    left_NQ, r_QR = torch.linalg.qr(b_NR)
    right_KQ, s_QR = torch.linalg.qr(a_RK.t())
    u, singular, v = torch.linalg.svd(r_QR @ s_QR.t(), full_matrices=False)
    # Parts that cancel out leave rounding, which is small beside the parts and not beside itself.
    rounding = torch.finfo(torch.float64).eps * b_NR.shape[1] * r_QR.norm() * s_QR.norm()
    singular = torch.where(singular > rounding, singular, 0.0)
    rank = truncation.kept(singular, (b_NR.shape[0], a_RK.shape[1]), module)
    return balanced(left_NQ @ u, singular, v @ right_KQ.t(), rank)


def _sparse_merge(tensors_Pxx: Tensor, weights_P: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """One tensor of several: entries dropped as the method says, then summed or, after an election, averaged."""
    if recipe.density is not None and recipe.density < 1:
        drop = _dropped_at_random if recipe.random else _smallest_dropped
        tensors_Pxx = torch.stack([drop(tensor, recipe.density, generator) for tensor in tensors_Pxx])
    weighted_Pxx = tensors_Pxx * weights_P[:, None, None]
    if "ties" not in recipe.method:
        return weighted_Pxx.sum(0)
    # Trim, elect, merge (TIES, section 4): of the entries at a place, those of the sign with the larger total count.
    elected_xx = torch.where(tensors_Pxx.sum(0) >= 0, 1, -1)
    agrees_Pxx = tensors_Pxx.sign() == elected_xx
    return (weighted_Pxx * agrees_Pxx).sum(0) / agrees_Pxx.sum(0).clamp(min=1.0)


def _smallest_dropped(tensor: Tensor, density: float, generator: torch.Generator) -> Tensor:
    mask = torch.zeros(tensor.numel())
    mask[torch.topk(tensor.abs().flatten(), int(density * tensor.numel())).indices] = 1
    return tensor * mask.view(tensor.shape)


def _dropped_at_random(tensor: Tensor, density: float, generator: torch.Generator) -> Tensor:
    # Rescaled, so that the expectation stays (DARE, section 3).
    return tensor * torch.bernoulli(torch.full_like(tensor, density), generator=generator) / density
