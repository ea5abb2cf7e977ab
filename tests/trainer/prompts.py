"""Soft prompts as long as a base's context allows, or nearly."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.tiny_models import AddedBase
from weft_adapters.saving import save
from weft_registry.kinds.prompt import TENSOR, PromptParams


def save_prompt(base: AddedBase, directory: Path, room: int) -> Path:
    """Writes the artifact of a prompt that leaves `room` tokens of the context."""
    spec = base.stored.spec
    params = PromptParams(spec.context_length - room, spec.hidden_size)
    tensors = {TENSOR: torch.randn(params.num_virtual_tokens, params.hidden_size)}
    save(directory, spec, kind="prompt", params=params, tensors=tensors, name="wide", tokenizer={}, provenance={})
    return directory
