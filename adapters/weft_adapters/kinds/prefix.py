"""Prefix-tuning: trained keys and values before every layer's own (Li and Liang 2021, arXiv:2101.00190).

The prefix carries no rotary embedding, and the request's own tokens take the positions after it, as in PEFT.
"""

from __future__ import annotations

from weft_adapters.int4 import Int4Weight
from weft_adapters.kinds.kind import Adapter, KeyValues, Kind, MergeRefusedError
from weft_registry.kinds.prefix import TENSOR, PrefixParams, PrefixSchema


class Prefix(Kind[PrefixParams]):
    """Keys and values for every layer."""

    schema = PrefixSchema()

    def key_values(self, adapter: Adapter[PrefixParams]) -> KeyValues:
        """The stored rows (P, L * 2 * H * D), seen as (L, H, P, D) twice."""
        params = adapter.params
        rows_PLxHD = adapter.tensors[TENSOR].view(
            params.num_virtual_tokens, params.num_layers, 2, params.num_kv_heads, params.head_dim
        )
        key_LHPD, value_LHPD = rows_PLxHD.permute(2, 1, 3, 0, 4).unbind(0)
        return KeyValues(key_LHPD, value_LHPD)

    def overlay(self, module: str, weight: Int4Weight, adapter: Adapter[PrefixParams]) -> None:
        """Refused: a prefix changes what attention sees, not a weight."""
        raise MergeRefusedError(
            "a prefix adapter cannot be merged: it adds keys and values to attention and changes no weight; it is "
            "served in the batch beside any merged adapter"
        )
