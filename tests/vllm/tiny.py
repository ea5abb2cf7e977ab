"""What tests share that run vLLM's `LLM` over a tiny model beside transformers' in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

# Heads of 32 for vLLM's CPU attention, and an own head: a tied one makes so small a model repeat its last token,
# whatever it attends to.
SHAPE: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 32, "tie_word_embeddings": False}
OPTIONS: Mapping[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "distributed_executor_backend": "uni",
    "block_size": 32,
    "max_model_len": 256,
    "max_num_batched_tokens": 48,
    "max_num_seqs": 8,
    "enable_lora": True,
    "max_lora_rank": 8,
    "skip_tokenizer_init": True,
}
"""Blocks of 32, and 48 tokens a step: prompts come in several."""


def text(seed: int, length: int) -> list[int]:
    """A random prompt without special tokens."""
    return torch.randint(3, 512, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
