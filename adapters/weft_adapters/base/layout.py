"""Which tensors a decoder of the Llama family has, under their Hugging Face names, and their shapes. No weights."""

from __future__ import annotations

from weft_adapters.base.config import ModelConfig

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
CODES, SCALE, MINIMUM, BIAS = ".codes", ".scale", ".minimum", ".bias"
CODES8, SCALE8 = ".codes8", ".scale8"
GROUP8 = 32
"""Inputs that share a scale in an 8-bit (Q8_0) tensor."""


def linears(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """The quantized linear modules in model order: (out_features, in_features) by full name."""
    hidden, inner = config.hidden_size, config.intermediate_size
    query, key_value = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    block = {
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (key_value, hidden),
        "self_attn.v_proj": (key_value, hidden),
        "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    return {f"model.layers.{i}.{name}": shape for i in range(config.num_layers) for name, shape in block.items()}


def has_bias(config: ModelConfig, module: str) -> bool:
    """Whether linear module `module` has a bias."""
    leaf = module.rpartition(".")[2]
    if leaf == "o_proj":
        return config.output_bias
    return config.qkv_bias if leaf in ("q_proj", "k_proj", "v_proj") else config.mlp_bias


def dense_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The tensors that are not quantized linear weights, by full name: embeddings, head, norms, biases."""
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, config.hidden_size)}
    for i in range(config.num_layers):
        layer = f"model.layers.{i}"
        shapes[f"{layer}.input_layernorm.weight"] = (config.hidden_size,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (config.hidden_size,)
        if config.qk_norm:
            shapes[f"{layer}.self_attn.q_norm.weight"] = (config.head_dim,)
            shapes[f"{layer}.self_attn.k_norm.weight"] = (config.head_dim,)
    shapes |= {m + BIAS: (shape[0],) for m, shape in linears(config).items() if has_bias(config, m)}
    shapes["model.norm.weight"] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        shapes[HEAD] = (config.vocab_size, config.hidden_size)
    return shapes
