"""A config.json from a GGUF file's metadata, refusing every setting that the decoder does not have.

Knows llama.cpp's key names (gguf-py/gguf/constants.py) and nothing of the tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from weft_registry.errors import InvalidInputError, UnsupportedError

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""GGUF architectures; Mistral models are "llama" there."""


def config_json(metadata: Mapping[str, Any], tensors: Collection[str], what: str) -> dict[str, Any]:
    """The configuration of a GGUF file. Raises `UnsupportedError` and `InvalidInputError` naming the key."""
    arch = metadata.get("general.architecture")
    if arch not in ARCHITECTURES:
        raise UnsupportedError(
            f"{what}: architecture {arch!r} is not supported; supported are {', '.join(ARCHITECTURES)}"
        )

    def need(key: str) -> Any:
        value = metadata.get(f"{arch}.{key}")
        if value is None:
            raise InvalidInputError(f"{what}: the metadata has no {arch}.{key}")
        return value

    hidden, heads = need("embedding_length"), need("attention.head_count")
    head_dim = metadata.get(f"{arch}.attention.key_length", hidden // heads)
    _refuse_unknown_forms(metadata, arch, head_dim, what)
    bias = "blk.0.attn_output.bias" in tensors
    return {
        "architectures": [ARCHITECTURES[arch]],
        "model_type": arch,
        "vocab_size": metadata.get(f"{arch}.vocab_size") or len(metadata.get("tokenizer.ggml.tokens") or ()),
        "hidden_size": hidden,
        "intermediate_size": need("feed_forward_length"),
        "num_hidden_layers": need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.get(f"{arch}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": need("context_length"),
        # A float32 in the file: its shortest decimal is the number that was meant.
        "rms_norm_eps": float(str(np.float32(need("attention.layer_norm_rms_epsilon")))),
        "rope_parameters": _rope(metadata, arch),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": bias,
        "mlp_bias": "blk.0.ffn_down.bias" in tensors,
        "use_sliding_window": False,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _end_tokens(metadata),
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
    }


def _refuse_unknown_forms(metadata: Mapping[str, Any], arch: str, head_dim: int, what: str) -> None:
    neutral = {
        "rope.dimension_count": (None, head_dim),
        "attention.value_length": (None, head_dim),
        "rope.scaling.type": (None, "none", "linear"),
        "rope.scale_linear": (None, 1.0),
        "attention.sliding_window": (None, 0),
        "expert_count": (None, 0),
        "attention.scale": (None, 0.0),
        "logit_scale": (None, 0.0),
        "residual_scale": (None, 0.0),
        "embedding_scale": (None, 0.0),
    }
    for key, admitted in neutral.items():
        value = metadata.get(f"{arch}.{key}")
        if value not in admitted:
            raise UnsupportedError(f"{what}: {arch}.{key} = {value!r} is not supported by this decoder")


def _rope(metadata: Mapping[str, Any], arch: str) -> dict[str, Any]:
    theta = float(str(np.float32(metadata.get(f"{arch}.rope.freq_base", 10_000.0))))
    if metadata.get(f"{arch}.rope.scaling.type") == "linear":
        factor = float(str(np.float32(metadata.get(f"{arch}.rope.scaling.factor", 1.0))))
        return {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    return {"rope_type": "default", "rope_theta": theta}


def _end_tokens(metadata: Mapping[str, Any]) -> int | list[int] | None:
    """The end of text, and the end of a chat turn where the file has another one."""
    ids = [metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot")]
    known = list(dict.fromkeys(int(i) for i in ids if i is not None))
    return known[0] if len(known) == 1 else known or None
