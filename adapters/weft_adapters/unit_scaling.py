"""The parameters of low-rank factors that are the whole delta: `y = W x + B A x`, no scaling besides.

What is computed rather than trained (extracted, combined, composed) folds its scalings into B. The stored form knows
only `alpha / r`, so alpha is the rank, module by module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from weft_registry.kinds.low_rank import LowRankParams


def unit_scaling(ranks: Mapping[str, int]) -> LowRankParams:
    """The parameters of an adapter of these ranks, by module, with a scaling of 1 everywhere.

    The commonest rank becomes `r`; of no module at all, 1.
    """
    common = Counter(ranks.values()).most_common(1)[0][0] if ranks else 1
    others = {module: rank for module, rank in ranks.items() if rank != common}
    return LowRankParams(
        r=common,
        alpha=float(common),
        use_rslora=False,
        target_modules=tuple(ranks),
        rank_pattern=others,
        alpha_pattern={module: float(rank) for module, rank in others.items()},
    )
