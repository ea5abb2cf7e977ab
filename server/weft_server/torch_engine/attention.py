"""Attention over blocks of the cache: many sequences with one new token each, or one sequence with many.

Legend: T rows of the step, B sequences, n new tokens, H key-value heads, Q query heads a key-value head, D head size;
N blocks of the cache, S slots of a block, M blocks of a table, L tokens.
Grouped-query attention is folded into the query's length, which needs no copy of the keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from weft_server.torch_engine.batch import Span, StepBatch
from weft_server.torch_engine.blocks import BLOCK_TOKENS, blocks_for
from weft_server.torch_engine.kv_cache import TorchKvStore

# Tokens that one gather copies at most: what the copies take stays small beside the cache.
_GATHERED_TOKENS = 1 << 16


def decode_mask(position_B: Tensor, length: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """(B, 1, length): 0 where the token at `position` may look, -inf elsewhere."""
    column_L = torch.arange(length, device=position_B.device)
    hidden_BL = column_L > position_B[:, None]
    if window is not None:
        hidden_BL |= column_L <= position_B[:, None] - window
    mask_BL = torch.zeros(hidden_BL.shape, dtype=dtype, device=position_B.device)
    return mask_BL.masked_fill_(hidden_BL, float("-inf"))[:, None]


def decode_attention(q_HBQD: Tensor, key_HBLD: Tensor, value_HBLD: Tensor, mask_B1L: Tensor) -> Tensor:
    """`softmax(q k^T / sqrt(D) + mask) v` for one new token of each sequence: (H, B, Q, D).

    Two batched products and a softmax: at these shapes faster on a CPU than the fused operator.
    """
    score_HBQL = torch.matmul(q_HBQD * q_HBQD.shape[-1] ** -0.5, key_HBLD.transpose(-1, -2))
    score_HBQL += mask_B1L
    return torch.matmul(torch.softmax(score_HBQL, dim=-1), value_HBLD)


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


@dataclass(frozen=True)
class _Group:
    """Sequences of similar length with one new token each."""

    rows: slice | Tensor
    position_B: Tensor
    table: Tensor
    """int64 (B * M,): the tables one after the other, each filled up with its own first block: a sequence never reads
    another's, not even to mask it away."""
    num_blocks: int


class StepAttention:
    """The attention of one step: what its layers share is made once, here.

    Making it readies the blocks that the step begins; `layer` then writes and reads one layer's keys and values.
    """

    def __init__(self, step: StepBatch, store: TorchKvStore, dtype: torch.dtype) -> None:
        self._store = store
        self._dtype = dtype
        self._device = step.token_T.device
        self._groups = [self._group(spans) for spans in _similar([span for span in step.spans if span.count == 1])]
        self._prompts = [span for span in step.spans if span.count > 1]
        self._tables = [self._index(span.blocks[: blocks_for(span.start + span.count)]) for span in self._prompts]
        self._slot_T = self._index([slot for span in step.spans for slot in _slots(span)])
        self._masks: dict[tuple[int, int | None], Tensor | None] = {}
        # The rest of a block that is begun and not filled belongs to an earlier owner.
        store.clear([span.blocks[(span.start + span.count) // BLOCK_TOKENS] for span in step.spans if _begins(span)])

    def layer(self, index: int, window: int | None, q_THQD: Tensor, k_THD: Tensor, v_THD: Tensor) -> Tensor:
        """Caches the step's keys and values of layer `index`, and attends: (T, H, Q, D)."""
        key_HNSD, value_HNSD = self._store.key_LHNSD[index], self._store.value_LHNSD[index]
        for cache_HNSD, new_THD in ((key_HNSD, k_THD), (value_HNSD, v_THD)):
            cache_HNSD.flatten(1, 2).index_copy_(1, self._slot_T, new_THD.transpose(0, 1))
        out_THQD = torch.empty_like(q_THQD, memory_format=torch.contiguous_format)
        for number, group in enumerate(self._groups):
            q_HBQD = q_THQD[group.rows].transpose(0, 1)
            size = (*q_HBQD.shape[:2], group.num_blocks * BLOCK_TOKENS, q_HBQD.shape[-1])
            out_HBQD = decode_attention(
                q_HBQD,
                key_HNSD.index_select(1, group.table).view(size),
                value_HNSD.index_select(1, group.table).view(size),
                self._decode_mask(number, window),
            )
            out_THQD[group.rows] = out_HBQD.transpose(0, 1)
        for number, (span, table_M) in enumerate(zip(self._prompts, self._tables, strict=True)):
            stop = span.start + span.count
            key_HLD = key_HNSD.index_select(1, table_M).flatten(1, 2)[:, :stop]
            value_HLD = value_HNSD.index_select(1, table_M).flatten(1, 2)[:, :stop]
            mask = self._prompt_mask(number, window)
            out_THQD[span.rows] = prefill_attention(q_THQD[span.rows], key_HLD, value_HLD, mask)
        return out_THQD

    def _group(self, spans: Sequence[Span]) -> _Group:
        num_blocks = max(span.start for span in spans) // BLOCK_TOKENS + 1
        table: list[int] = []
        for span in spans:
            own = span.blocks[: span.start // BLOCK_TOKENS + 1]
            table += own
            table += [own[0]] * (num_blocks - len(own))
        rows = [span.rows.start for span in spans]
        neighbours = rows == list(range(rows[0], rows[0] + len(rows)))
        return _Group(
            slice(rows[0], rows[-1] + 1) if neighbours else self._index(rows),
            self._index([span.start for span in spans]),
            self._index(table),
            num_blocks,
        )

    def _decode_mask(self, number: int, window: int | None) -> Tensor:
        key = (number, window)
        mask = self._masks.get(key)
        if mask is None:
            group = self._groups[number]
            length = group.num_blocks * BLOCK_TOKENS
            mask = self._masks[key] = decode_mask(group.position_B, length, window, self._dtype)
        return mask

    def _prompt_mask(self, number: int, window: int | None) -> Tensor | None:
        key = (len(self._groups) + number, window)
        if key not in self._masks:
            span = self._prompts[number]
            self._masks[key] = prefill_mask(span.start, span.count, window, self._dtype, self._device)
        return self._masks[key]

    def _index(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)


def _similar(spans: Sequence[Span]) -> list[list[Span]]:
    """Groups whose members are at most about twice as long as each other, none too large to gather."""
    groups: dict[int, list[list[Span]]] = {}
    for span in spans:
        size = max(4, 1 << (span.start // BLOCK_TOKENS).bit_length())
        found = groups.setdefault(size, [[]])
        if len(found[-1]) * size * BLOCK_TOKENS >= _GATHERED_TOKENS:
            found.append([])
        found[-1].append(span)
    return [group for found in groups.values() for group in found]


def _slots(span: Span) -> list[int]:
    """Where the new tokens go, in the cache seen as one run of slots."""
    return [
        span.blocks[position // BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS
        for position in range(span.start, span.start + span.count)
    ]


def _begins(span: Span) -> bool:
    """Whether the span writes the first slot of its last block, but not the last one."""
    stop = span.start + span.count
    return stop % BLOCK_TOKENS != 0 and stop - stop % BLOCK_TOKENS >= span.start
