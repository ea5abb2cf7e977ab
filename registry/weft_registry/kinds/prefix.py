"""The artifact of a prefix-tuning adapter: PEFT's one tensor, keys and values of every layer.

Source: Prefix-Tuning (Li and Liang 2021, arXiv:2101.00190); the flat layout is PEFT's: row p holds, for each layer,
the key then the value of virtual token p, heads in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError
from weft_registry.kinds.schema import BlockReader, TensorSpec

TENSOR = "prompt_embeddings"


@dataclass(frozen=True)
class PrefixParams:
    """The shape of the prefix."""

    num_virtual_tokens: int
    num_layers: int
    num_kv_heads: int
    head_dim: int


class PrefixSchema:
    """`prompt_embeddings` is (virtual tokens, layers * 2 * KV heads * head size)."""

    name = "prefix"

    def parse(self, block: Mapping[str, Any]) -> PrefixParams:
        """See `KindSchema.parse`."""
        reader = BlockReader(block)
        params = PrefixParams(
            num_virtual_tokens=reader.integer("num_virtual_tokens", most=1 << 16),
            num_layers=reader.integer("num_layers"),
            num_kv_heads=reader.integer("num_kv_heads"),
            head_dim=reader.integer("head_dim"),
        )
        reader.end()
        return params

    def block(self, params: PrefixParams) -> dict[str, Any]:
        """See `KindSchema.block`."""
        return dict(vars(params))

    def tensors(self, params: PrefixParams, base: BaseSpec | None) -> dict[str, TensorSpec]:
        """See `KindSchema.tensors`."""
        if base is not None:
            for field in ("num_layers", "num_kv_heads", "head_dim"):
                have, want = getattr(params, field), getattr(base, field)
                if have != want:
                    raise InvalidInputError(f"adapter.{field}: {have}, but the base {base.fingerprint.id} has {want}")
            if params.num_virtual_tokens >= base.context_length:
                raise InvalidInputError(
                    f"adapter.num_virtual_tokens: {params.num_virtual_tokens} leaves nothing of the base's context of "
                    f"{base.context_length}"
                )
        width = params.num_layers * 2 * params.num_kv_heads * params.head_dim
        return {TENSOR: TensorSpec((params.num_virtual_tokens, width))}
