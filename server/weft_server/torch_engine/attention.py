"""Attention over the cache: many sequences with one new token each, or one sequence with many.

Legend: B sequences, n new tokens, H key-value heads, Q query heads a key-value head, L cached tokens, D head size.
Grouped-query attention is folded into the query's length, which needs no copy of the keys and values.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def decode_mask(position_B: Tensor, length: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """(B, 1, 1, length): 0 where the token at `position` may look, -inf elsewhere."""
    column_L = torch.arange(length, device=position_B.device)
    hidden_BL = column_L > position_B[:, None]
    if window is not None:
        hidden_BL |= column_L <= position_B[:, None] - window
    mask_BL = torch.zeros(hidden_BL.shape, dtype=dtype, device=position_B.device)
    return mask_BL.masked_fill_(hidden_BL, float("-inf"))[:, None, None]


def decode_attention(q_BHQD: Tensor, key_BHLD: Tensor, value_BHLD: Tensor, mask_B11L: Tensor) -> Tensor:
    """`softmax(q k^T / sqrt(D) + mask) v` for one new token of each sequence: (B, H, Q, D).

    Two batched products and a softmax: at these shapes faster on a CPU than the fused operator.
    """
    score_BHQL = torch.matmul(q_BHQD * q_BHQD.shape[-1] ** -0.5, key_BHLD.transpose(-1, -2))
    score_BHQL += mask_B11L
    return torch.matmul(torch.softmax(score_BHQL, dim=-1), value_BHLD)


def prefill_mask(start: int, count: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """(count, start + count), or None where plain causal attention is meant (nothing before, no window in reach)."""
    length = start + count
    if start == 0 and (window is None or window >= length):
        return None
    row_n1 = torch.arange(start, length, device=device)[:, None]
    column_L = torch.arange(length, device=device)
    hidden_nL = column_L > row_n1
    if window is not None:
        hidden_nL |= column_L <= row_n1 - window
    return torch.zeros(hidden_nL.shape, dtype=dtype, device=device).masked_fill_(hidden_nL, float("-inf"))


def prefill_attention(q_nHQD: Tensor, key_HLD: Tensor, value_HLD: Tensor, mask_nL: Tensor | None) -> Tensor:
    """Causal attention for `n` new tokens of one sequence, the last of its `L`: (n, H, Q, D)."""
    n, heads, queries, dim = q_nHQD.shape
    q_1Hnd = q_nHQD.permute(1, 2, 0, 3).reshape(1, heads * queries, n, dim)
    key = key_HLD.repeat_interleave(queries, dim=0)[None]
    value = value_HLD.repeat_interleave(queries, dim=0)[None]
    out = F.scaled_dot_product_attention(q_1Hnd, key, value, attn_mask=mask_nL, is_causal=mask_nL is None)
    return out.view(heads, queries, n, dim).permute(2, 0, 1, 3)
