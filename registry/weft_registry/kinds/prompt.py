"""The artifact of a soft prompt: PEFT's one tensor, the embeddings of virtual tokens before the text's own.

Sources: prompt tuning (Lester et al. 2021, arXiv:2104.08691) trains these numbers; P-tuning (Liu et al. 2021,
arXiv:2103.10385) trains an encoder that computes them. What is stored is the prompt either way, so both are one kind.
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
PEFT_TYPES = ("PROMPT_TUNING", "P_TUNING")

# How the prompt came about: its first values, and the encoder that computed it. Neither is in the file, nor needed.
_HISTORY = frozenset(
    {
        "prompt_tuning_init",
        "prompt_tuning_init_text",
        "tokenizer_name_or_path",
        "tokenizer_kwargs",
        "encoder_reparameterization_type",
        "encoder_hidden_size",
        "encoder_num_layers",
        "encoder_dropout",
    }
)
# PEFT writes the base's layers and heads beside every prompt; embeddings do not depend on them.
_PEFT_KEYS = _HISTORY | {
    "num_virtual_tokens",
    "token_dim",
    "num_transformer_submodules",
    "num_attention_heads",
    "num_layers",
}


@dataclass(frozen=True)
class PromptParams:
    """The shape of the prompt."""

    num_virtual_tokens: int
    hidden_size: int


class PromptSchema:
    """`prompt_embeddings` is (virtual tokens, hidden size)."""

    name = "prompt"

    def parse(self, block: Mapping[str, Any]) -> PromptParams:
        """See `KindSchema.parse`."""
        reader = BlockReader(block)
        params = PromptParams(
            num_virtual_tokens=reader.integer("num_virtual_tokens", most=1 << 16),
            hidden_size=reader.integer("hidden_size"),
        )
        reader.end()
        return params

    def block(self, params: PromptParams) -> dict[str, Any]:
        """See `KindSchema.block`."""
        return dict(vars(params))

    def tensors(self, params: PromptParams, base: BaseSpec | None) -> dict[str, TensorSpec]:
        """See `KindSchema.tensors`."""
        if base is not None:
            if params.hidden_size != base.hidden_size:
                raise InvalidInputError(
                    f"adapter.hidden_size: {params.hidden_size}, but the base {base.fingerprint.id} has "
                    f"{base.hidden_size}"
                )
            if params.num_virtual_tokens >= base.context_length:
                raise InvalidInputError(
                    f"adapter.num_virtual_tokens: {params.num_virtual_tokens} leaves nothing of the base's context of "
                    f"{base.context_length}: take at most {base.context_length - 1}, and fewer to leave room for a text"
                )
        return {TENSOR: TensorSpec((params.num_virtual_tokens, params.hidden_size))}

    def reads_peft(self, config: Mapping[str, Any]) -> bool:
        """See `KindSchema.reads_peft`."""
        return config.get("peft_type") in PEFT_TYPES

    def from_peft(
        self, config: Mapping[str, Any], shapes: Shapes, base: BaseSpec | None = None, pooling: str = "peft"
    ) -> PromptParams:
        """See `KindSchema.from_peft`. PEFT saves the prompt that a P-tuning encoder computes, never the encoder."""
        check_keys(config, _PEFT_KEYS, {"modules_to_save": "fully trained modules are not adapters"})
        if set(shapes) != {TENSOR}:
            other = ", ".join(sorted(set(shapes) - {TENSOR})[:3]) or "nothing"
            raise InvalidInputError(f"a soft prompt has one tensor, {TENSOR}; found {other}")
        if config.get("num_transformer_submodules") not in (None, 1):
            raise InvalidInputError("adapter_config.json: num_transformer_submodules: only decoders (1) are served")
        params = PromptParams(whole(config, "num_virtual_tokens"), whole(config, "token_dim"))
        expected = self.tensors(params, None)[TENSOR].shape
        if shapes[TENSOR] != expected:
            raise InvalidInputError(f"{TENSOR}: shape {shapes[TENSOR]}, but adapter_config.json asks for {expected}")
        return self.parse(self.block(params))

    def to_peft(self, params: PromptParams, base: BaseSpec) -> dict[str, Any]:
        """See `KindSchema.to_peft`. Always prompt tuning: PEFT then takes the stored prompt as it is."""
        return {
            "peft_type": "PROMPT_TUNING",
            "num_virtual_tokens": params.num_virtual_tokens,
            "token_dim": params.hidden_size,
            "num_layers": base.num_layers,
            "num_attention_heads": base.num_heads,
            "num_transformer_submodules": 1,
            "prompt_tuning_init": "RANDOM",
        }

    def differences(self, declared: PromptParams, found: PromptParams) -> list[str]:
        """See `KindSchema.differences`."""
        return [
            f"{field} is {there}, in the manifest {here}"
            for (field, here), there in zip(vars(declared).items(), vars(found).values(), strict=True)
            if here != there
        ]
