"""The attention mask of packed rows: block-diagonal, causal inside each example, and a shared beginning for all.

A prefix before a row stands before EACH of its examples: its keys and values are the same for all of them and depend on
none, so every example attends to the one copy, at the positions that it would have had alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from weft_adapters.base.load import StoredBase
from weft_registry.errors import InvalidInputError


def packed_arguments(batch: Mapping[str, Tensor], attention: str, dtype: torch.dtype) -> dict[str, Any]:
    """`attention_mask` (B, 1, Q, P + T) and `position_ids` (B, Q) for transformers, from a batch of `PackedBatches`.

    `batch["attention_mask"]` is (B, P + T), with ones for P positions that stand before the row; its inputs have
    Q = T rows (the P are in a cache), or Q = P + T (they are computed with the row). `attention` is transformers'
    `attn_implementation`, `dtype` what the model computes in.
    """
    segments_BT = batch["segment_ids"]
    inputs = batch["input_ids"] if "input_ids" in batch else batch["inputs_embeds"]
    examples, length = segments_BT.shape
    before = batch["attention_mask"].shape[1] - length
    causal_TT = torch.ones(length, length, dtype=torch.bool, device=segments_BT.device).tril()
    visible = (segments_BT[:, :, None] == segments_BT[:, None, :]) & causal_TT
    visible = torch.cat([visible.new_ones(examples, length, before), visible], dim=2)
    positions = batch["position_ids"] + before
    if inputs.shape[1] > length:
        own_PP = torch.ones(before, before, dtype=torch.bool, device=segments_BT.device).tril()
        top_PX = torch.cat([own_PP, own_PP.new_zeros(before, length)], dim=1)
        visible = torch.cat([top_PX.expand(examples, -1, -1), visible], dim=1)
        start = torch.arange(before, device=positions.device).expand(examples, -1)
        positions = torch.cat([start, positions], dim=1)
    mask = visible[:, None]
    if attention == "eager":
        # It adds its mask to the scores; the fused kernel takes a boolean one.
        mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
    return {"attention_mask": mask, "position_ids": positions}


def check_windows(stored: StoredBase, length: int) -> None:
    """Raises `InvalidInputError` where an example could be longer than what the base's attention reaches back."""
    windows = [window for window in stored.config.sliding_windows if window is not None]
    if windows and length > min(windows):
        raise InvalidInputError(
            f"data.packing: layers of this base see {min(windows)} tokens back, which the mask of packed rows does not "
            f"know; set data.max_length (now {length}) to that, or leave packing out"
        )
