"""What the `adapter` block of a training configuration may say, one dataclass per family of methods. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from weft_registry.kinds.low_rank import MAX_RANK

ALL = "all"


@dataclass(frozen=True)
class LowRankOptions:
    """`method: lora` (arXiv:2106.09685) and `method: qalora` (arXiv:2309.14717)."""

    r: int = field(default=8, metadata={"least": 1, "most": MAX_RANK})
    """The rank of B A."""
    alpha: float = field(default=16.0, metadata={"above": 0})
    """B A is scaled by alpha / r."""
    dropout: float = field(default=0.0, metadata={"least": 0, "most": 0.99})
    """Probability that an input of A is dropped in training."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) instead (arXiv:2312.03732)."""
    target_modules: tuple[str, ...] = (ALL,)
    """Linear modules to adapt: full names, their last parts ("q_proj"), or "all"."""
    layers: str | tuple[int, ...] = ALL
    """The layers adapted: "all", "top:8" (the last eight), or a list of indices. Where the lowest layers are left
    alone, their output is computed once per example and kept: steps become several times cheaper."""
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    """Ranks other than `r`, by full name or last part; a full name decides over a last part."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    """Alphas other than `alpha`, likewise."""


@dataclass(frozen=True)
class PrefixOptions:
    """`method: prefix` (arXiv:2101.00190): trained keys and values before every layer's own."""

    num_virtual_tokens: int | None = field(default=None, metadata={"least": 1, "most": 1 << 16})
    """Length of the prefix. With `init_text` it may be left out (the text's own length) or exceed it (the text is
    repeated). Without `init_text`: 16."""
    init_text: str | None = None
    """A text whose keys and values in the base are the prefix's first values (section 7.4 of the paper: real words
    start better than noise). Training begins at the base that has just read this text."""
    prefix_projection: bool = False
    """Train the prefix through PEFT's two-layer MLP (section 4.3 of the paper); not together with `init_text`."""
    encoder_hidden_size: int | None = field(default=None, metadata={"least": 1})
    """Width of that MLP; None means the prefix's own width per layer."""
    init_scale: float = field(default=0.1, metadata={"above": 0})
    """Standard deviation of the random start, without `init_text`."""
