"""Soft prompts in vLLM: trained input embeddings before a request's text (prompt-tuning, Lester et al. 2021,
arXiv:2104.08691; P-tuning, Liu et al. 2021, arXiv:2103.10385, whose encoder's output is what is served).

vLLM takes prompts of embeddings and of token ids mixed, position by position, and looks up the token ids itself: what
the text's tokens embed to never leaves the model. Such requests share a batch with plain and LoRA ones. The engine must
be started with `ENGINE_ARGUMENTS`, as `arguments` does it.

Legend: P virtual tokens, T tokens of the text, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weft_registry.errors import InvalidInputError

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ENGINE_ARGUMENTS: Mapping[str, Any] = {
    "enable_prompt_embeds": True,
    # Without the token embedding, on which vLLM's LoRA wants token ids where there are none.
    "lora_target_modules": list(LORA_TARGETS),
}
"""For vLLM's engine arguments."""


@dataclass(frozen=True, eq=False)
class SoftPrompt:
    """One version of a soft prompt, in memory."""

    digest: str
    rows_PD: Tensor
    """In the model's dtype, on the CPU: vLLM sends it along with every request."""


def soft_prompt(digest: str, rows_PD: Tensor, hidden_size: int, dtype: torch.dtype) -> SoftPrompt:
    """A soft prompt for a model of `hidden_size`. Raises `InvalidInputError` if it does not fit it."""
    if rows_PD.ndim != 2 or rows_PD.shape[0] == 0 or rows_PD.shape[1] != hidden_size:
        raise InvalidInputError(
            f"soft prompt {digest}: shape {tuple(rows_PD.shape)}; expected (virtual tokens, {hidden_size})"
        )
    rows = rows_PD.to("cpu", dtype).contiguous()
    if not rows_PD.is_floating_point() or not bool(rows.isfinite().all()):
        raise InvalidInputError(
            f"soft prompt {digest}: embeddings are floating-point numbers that are finite in {dtype}"
        )
    return SoftPrompt(digest, rows)


def soft_prompt_request(prompt: SoftPrompt, token_ids: Sequence[int]) -> dict[str, Any]:
    """The prompt that vLLM's `generate` takes: P rows of embeddings, then the T tokens of the text.

    vLLM counts the rows as tokens of the prompt. It finds cached blocks by the numbers in them, and by the salt. Raises
    `InvalidInputError` for a text without tokens.
    """
    if not token_ids:
        raise InvalidInputError("a soft prompt stands before a text of at least one token")
    virtual, width = prompt.rows_PD.shape
    # The rows of the text are not read: their places say "token id".
    text_TD = prompt.rows_PD.new_zeros(len(token_ids), width)
    return {
        "prompt_embeds": torch.cat([prompt.rows_PD, text_TD]),
        "prompt_token_ids": [0] * virtual + list(token_ids),
        "prompt_is_token_ids": [False] * virtual + [True] * len(token_ids),
        "cache_salt": f"soft:{prompt.digest}",
    }
