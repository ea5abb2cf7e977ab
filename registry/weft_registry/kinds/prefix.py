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
from weft_registry.kinds.peft_keys import check_keys, whole
from weft_registry.kinds.schema import BlockReader, Shapes, TensorSpec

TENSOR = "prompt_embeddings"

# A saved prefix is always the computed one: a projection that trained it (`prefix_projection`, `encoder_hidden_size`)
# is not in the file, and is no longer needed.
_PEFT_KEYS = frozenset(
    {
        "num_virtual_tokens",
        "num_layers",
        "num_attention_heads",
        "token_dim",
        "num_transformer_submodules",
        "encoder_hidden_size",
        "prefix_projection",
        "init_weights",
    }
)


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
                    f"{base.context_length}: take at most {base.context_length - 1}, and fewer to leave room for a text"
                )
        width = params.num_layers * 2 * params.num_kv_heads * params.head_dim
        return {TENSOR: TensorSpec((params.num_virtual_tokens, width))}

    def reads_peft(self, config: Mapping[str, Any]) -> bool:
        """See `KindSchema.reads_peft`."""
        return config.get("peft_type") == "PREFIX_TUNING"

    def from_peft(
        self, config: Mapping[str, Any], shapes: Shapes, base: BaseSpec | None = None, pooling: str = "peft"
    ) -> PrefixParams:
        """See `KindSchema.from_peft`. PEFT's `num_attention_heads` and `token_dim` are those of the keys and values."""
        check_keys(config, _PEFT_KEYS, {"modules_to_save": "fully trained modules are not adapters"})
        if set(shapes) != {TENSOR}:
            other = ", ".join(sorted(set(shapes) - {TENSOR})[:3]) or "nothing"
            raise InvalidInputError(f"a prefix has one tensor, {TENSOR}; found {other}")
        if config.get("num_transformer_submodules") not in (None, 1):
            raise InvalidInputError("adapter_config.json: num_transformer_submodules: only decoders (1) are served")
        heads, width = whole(config, "num_attention_heads"), whole(config, "token_dim")
        if width % heads:
            raise InvalidInputError(f"adapter_config.json: token_dim {width} is not a multiple of {heads} heads")
        params = PrefixParams(
            num_virtual_tokens=whole(config, "num_virtual_tokens"),
            num_layers=whole(config, "num_layers"),
            num_kv_heads=heads,
            head_dim=width // heads,
        )
        expected = self.tensors(params, None)[TENSOR].shape
        if shapes[TENSOR] != expected:
            raise InvalidInputError(f"{TENSOR}: shape {shapes[TENSOR]}, but adapter_config.json asks for {expected}")
        return self.parse(self.block(params))

    def to_peft(self, params: PrefixParams, base: BaseSpec) -> dict[str, Any]:
        """See `KindSchema.to_peft`."""
        return {
            "peft_type": "PREFIX_TUNING",
            "num_virtual_tokens": params.num_virtual_tokens,
            "num_layers": params.num_layers,
            "num_attention_heads": params.num_kv_heads,
            "token_dim": params.num_kv_heads * params.head_dim,
            "num_transformer_submodules": 1,
            "prefix_projection": False,
            "encoder_hidden_size": None,
        }

    def differences(self, declared: PrefixParams, found: PrefixParams) -> list[str]:
        """See `KindSchema.differences`."""
        return [
            f"{field} is {there}, in the manifest {here}"
            for (field, here), there in zip(vars(declared).items(), vars(found).values(), strict=True)
            if here != there
        ]
