"""What an export costs: how far its logits are from the exact base's, in float32, on prompts that never change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from weft_adapters.base.dense import dequantized_state_dict
from weft_adapters.base.load import StoredBase
from weft_adapters.base.tokenizer_files import TOKENIZER
from weft_adapters.int4 import Int4Weight
from weft_registry.errors import UnsupportedError

PROMPTS = (
    "The quick brown fox jumps over the lazy dog, and the dog",
    "The capital of France is Paris, and the capital of Japan is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Oil prices rose sharply on Monday after the ministers agreed to cut production by",
    "Question: A train travels 60 miles in 90 minutes. What is its speed? Answer:",
    "Es war einmal ein König, der hatte drei",
)


@dataclass(frozen=True)
class LogitsCost:
    """Differences of logits over every position of `PROMPTS`, each position's mean taken off: a constant added to all
    changes no probability."""

    largest: float
    mean: float
    """Of the absolute differences."""
    spread: float
    """The exact logits' own standard deviation at a position, averaged: what the differences compare with."""
    same_first: float
    """The share of positions where both have the same most likely token."""
    positions: int


def logits_cost(base: StoredBase, change: Callable[[Int4Weight], Int4Weight]) -> LogitsCost:
    """Compares `base` with every linear weight replaced by `change` of it. Needs transformers, and memory for the
    dense float32 model. Raises `UnsupportedError` without transformers."""
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as error:
        raise UnsupportedError("comparing logits needs transformers: pip install 'weft[train]'") from error
    build: Any = AutoModelForCausalLM.from_config
    model = build(AutoConfig.from_pretrained(base.path), dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(base.tokenizer_dir / TOKENIZER))
    prompts = [tokenizer.encode(text).ids for text in PROMPTS]
    model.load_state_dict(dequantized_state_dict(base))
    exact = _logits(model, prompts)
    with torch.no_grad():
        for module in base.spec.linears:
            model.get_parameter(f"{module}.weight").copy_(change(base.int4(module)).dequantize())
    return _compare(exact, _logits(model, prompts))


def _logits(model: Any, prompts: list[list[int]]) -> Tensor:
    with torch.inference_mode():
        logits_TV = torch.cat([model(torch.tensor([ids])).logits[0] for ids in prompts])
    return logits_TV - logits_TV.mean(-1, keepdim=True)


def _compare(exact_TV: Tensor, other_TV: Tensor) -> LogitsCost:
    difference_TV = (exact_TV - other_TV).abs()
    return LogitsCost(
        largest=float(difference_TV.max()),
        mean=float(difference_TV.mean()),
        spread=float(exact_TV.std(-1).mean()),
        same_first=float((exact_TV.argmax(-1) == other_TV.argmax(-1)).float().mean()),
        positions=exact_TV.shape[0],
    )
