"""Gradient checkpointing: a layer keeps only its input for the backward pass, and computes the rest again there.

Not transformers' own: that one drops the key-value cache of every layer it wraps, and with it the trained prefix of
prefix-tuning, of which it would then train nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from weft_trainer.modeling.base import TrainingBase


class FixedPast:
    """One layer's keys and values from before the input: (B, H, P, D) each. Is asked like a cache, and keeps nothing:
    the second computation must see what the first one saw.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self._keys, self._values = keys, values

    def update(self, keys: Tensor, values: Tensor, *_where: Any, **_more: Any) -> tuple[Tensor, Tensor]:
        """The layer's keys and values with those from before in front: (B, H, P + T, D) each."""
        return torch.cat([self._keys, keys], dim=-2), torch.cat([self._values, values], dim=-2)


def recompute_layers(base: TrainingBase) -> None:
    """Makes every layer of the base, and what adapters put into it, recompute in the backward pass. Dropout draws the
    same numbers again."""
    for index, layer in enumerate(base.model.model.layers):
        layer.forward = _recomputing(layer, layer.forward, index)


def _recomputing(layer: nn.Module, forward: Callable[..., Any], index: int) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not (layer.training and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        cache = kwargs.get("past_key_values")
        if cache is not None:
            past = cache.layers[index]
            kwargs["past_key_values"] = FixedPast(past.keys, past.values)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
