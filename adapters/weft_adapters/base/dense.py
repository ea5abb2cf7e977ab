"""A stored base as an ordinary dense model: what tests, benchmarks and the trainer compare against or start from."""

from __future__ import annotations

import torch
from torch import Tensor

from weft_adapters.base import layout
from weft_adapters.base.load import StoredBase


def dequantized_state_dict(stored: StoredBase, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Every weight in `dtype` under its Hugging Face name, ready for `load_state_dict` of transformers' model class.

    A tied head is the embedding's own tensor under its second name.
    """
    state = {f"{module}.weight": stored.int4(module).dequantize(dtype) for module in stored.spec.linears}
    state |= {name: stored.dense(name, dtype) for name in layout.dense_tensors(stored.config)}
    if stored.config.tie_word_embeddings:
        state[layout.HEAD] = state[layout.EMBEDDING]
    return state
