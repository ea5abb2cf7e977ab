"""A fixed batch, and transformers' own dense model to compare with."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.tiny_models import AddedBase
from weft_adapters.base.dense import dequantized_state_dict

IDS = torch.tensor([[5, 9, 200, 31, 77, 8], [4, 4, 60, 2, 2, 2]])
BATCH = {"input_ids": IDS, "attention_mask": torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]])}
LABELS = torch.tensor([[-100, -100, -100, 31, 77, 8], [-100, -100, 60, -100, -100, -100]])
"""The completions: three tokens, and one."""


def dense_model(base: AddedBase) -> Any:
    """transformers' own model on the dequantized weights: the oracle."""
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base.stored.path), dtype=torch.float32)
    model.load_state_dict(dequantized_state_dict(base.stored))
    return model.eval()
