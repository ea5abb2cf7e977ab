"""The parameters that every low-rank kind shares: which modules, which rank and alpha at each, and the scaling.

Source: LoRA (Hu et al. 2021, arXiv:2106.09685), eq. 3: `h = W x + (alpha / r) B A x`; rsLoRA (Kalajdzievski 2023,
arXiv:2312.03732) scales by `alpha / sqrt(r)` instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError
from weft_registry.kinds.schema import BlockReader, format_decimal, parse_decimal
from weft_registry.names import nearest

MAX_RANK = 1024
PEFT_PREFIX = "base_model.model."
"""What PEFT puts in front of a module's name in adapter_model.safetensors."""


@dataclass(frozen=True)
class LowRankParams:
    """Rank and alpha, by module. Patterns are exact module names here, never regular expressions."""

    r: int
    alpha: float
    use_rslora: bool
    target_modules: tuple[str, ...]
    """Full module names, such as "model.layers.0.self_attn.q_proj"."""
    rank_pattern: Mapping[str, int]
    """Ranks that differ from `r`, by full module name."""
    alpha_pattern: Mapping[str, float]
    """Alphas that differ from `alpha`, by full module name."""

    def rank(self, module: str) -> int:
        """The rank at `module`."""
        return self.rank_pattern.get(module, self.r)

    def alpha_of(self, module: str) -> float:
        """The alpha at `module`."""
        return self.alpha_pattern.get(module, self.alpha)

    def scaling(self, module: str) -> float:
        """What B A is multiplied by at `module`."""
        rank, alpha = self.rank(module), self.alpha_of(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def read_low_rank(reader: BlockReader) -> LowRankParams:
    """The shared keys of a manifest's `adapter` block. Raises `InvalidInputError`."""
    params = LowRankParams(
        r=reader.integer("r", most=MAX_RANK),
        alpha=reader.decimal("alpha"),
        use_rslora=reader.boolean("use_rslora"),
        target_modules=reader.names("target_modules"),
        rank_pattern=reader.mapping("rank_pattern"),
        alpha_pattern={
            module: parse_decimal(alpha, f"adapter.alpha_pattern[{module!r}]")
            for module, alpha in reader.mapping("alpha_pattern").items()
        },
    )
    targets = set(params.target_modules)
    for field in ("rank_pattern", "alpha_pattern"):
        for module in getattr(params, field):
            if module not in targets:
                raise InvalidInputError(f"adapter.{field}[{module[:200]!r}]: not one of target_modules")
    for module, rank in params.rank_pattern.items():
        if type(rank) is not int or not 1 <= rank <= MAX_RANK:
            raise InvalidInputError(
                f"adapter.rank_pattern[{module!r}]: expected a whole number from 1 to {MAX_RANK}, found {rank!r}"
            )
    return params


def low_rank_block(params: LowRankParams) -> dict[str, Any]:
    """The inverse of `read_low_rank`."""
    return {
        "r": params.r,
        "alpha": format_decimal(params.alpha),
        "use_rslora": params.use_rslora,
        "target_modules": list(params.target_modules),
        "rank_pattern": dict(params.rank_pattern),
        "alpha_pattern": {module: format_decimal(alpha) for module, alpha in params.alpha_pattern.items()},
    }


def module_shape(module: str, base: BaseSpec | None) -> tuple[int | None, int | None]:
    """(out_features, in_features) of a target module. Raises `InvalidInputError` if the base has no such module."""
    if base is None:
        return None, None
    if module not in base.linears:
        hint = ", ".join(nearest(module, base.linears)) or "see `weft base show`"
        raise InvalidInputError(
            f"adapter.target_modules: the base {base.fingerprint.id} has no linear module {module!r}; nearest: {hint}"
        )
    return base.linears[module]
