"""A decoder's configuration: what config.json says about the mathematics, parsed strictly into one frozen value.

Covers the Llama family as transformers 5 defines it: llama, mistral, qwen2, qwen3. A setting that this decoder does
not have is refused by name, never ignored. Knows no weights and no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from weft_adapters.base.rope import parse_rope
from weft_registry import canonical, digest
from weft_registry.errors import InvalidInputError, UnsupportedError

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class ModelConfig:
    """The dimensions and options of one decoder."""

    arch: str
    """transformers' `model_type`: one of `ARCHITECTURES`."""
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None
    """None, or a dict with `rope_type` "linear" (factor) or "llama3" (factor, low_freq_factor, high_freq_factor,
    original_max_position_embeddings)."""
    vocab_size: int
    context_length: int
    tie_word_embeddings: bool
    qkv_bias: bool
    """Whether q_proj, k_proj and v_proj have a bias."""
    output_bias: bool
    """Whether o_proj has a bias."""
    mlp_bias: bool
    """Whether gate_proj, up_proj and down_proj have a bias."""
    qk_norm: bool
    """Whether queries and keys are RMS-normalized per head before the rotation (qwen3)."""
    sliding_windows: tuple[int | None, ...]
    """Per layer: None, or w when position i sees positions i - w < j <= i only."""
    hidden_act: str
    """Always "silu"."""
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None

    @property
    def sliding_window(self) -> tuple[int | None, ...] | None:
        """The per-layer windows, or None when no layer has one."""
        return self.sliding_windows if any(w is not None for w in self.sliding_windows) else None

    def sha256(self) -> str:
        """The digest of every field that changes the model's function: what a fingerprint's `config_sha256` is.

        Token ids and the context length are left out: they steer generation, not the mathematics. Floats count as
        their shortest float32 decimal, so that 1e-5 read from a GGUF file (a float32) and from JSON agree.
        """
        fields = {k: v for k, v in vars(self).items() if k not in {"eos_token_ids", "bos_token_id", "context_length"}}
        return digest.of_bytes(canonical.dumps(_canonical(fields)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any], what: str = "config.json") -> ModelConfig:
        """Parses a config.json. Raises `InvalidInputError` for a missing or mistyped field and `UnsupportedError` for
        an architecture or a setting that this decoder does not have."""
        arch = data.get("model_type")
        if arch not in ARCHITECTURES:
            raise UnsupportedError(
                f"{what}: model_type {arch!r} is not supported; supported are {', '.join(ARCHITECTURES)}"
            )
        _refuse(data, what)
        read = _Reader(data, what)
        hidden, heads, layers = (read.size(k) for k in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
        head_dim = read.size("head_dim", 128 if arch == "qwen3" else hidden // heads)
        # Only Llama's configuration class falls back to multi-head attention; the others have per-class defaults.
        kv_heads = read.size("num_key_value_heads", heads if arch == "llama" else None)
        if heads % kv_heads:
            raise InvalidInputError(f"{what}: num_attention_heads {heads} is not a multiple of {kv_heads} KV heads")
        if head_dim % 2:
            raise InvalidInputError(f"{what}: head_dim {head_dim} is odd: rotary embeddings need pairs")
        context = read.size("max_position_embeddings")
        rope_theta, rope_scaling = parse_rope(data, context, what)
        bias = read.flag("attention_bias") if arch in ("llama", "qwen3") else False
        return cls(
            arch=arch,
            hidden_size=hidden,
            intermediate_size=read.size("intermediate_size"),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            rms_norm_eps=read.positive("rms_norm_eps", 1e-6),
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            vocab_size=read.size("vocab_size"),
            context_length=context,
            tie_word_embeddings=read.flag("tie_word_embeddings"),
            qkv_bias=bias or arch == "qwen2",
            output_bias=bias,
            mlp_bias=read.flag("mlp_bias") if arch == "llama" else False,
            qk_norm=arch == "qwen3",
            sliding_windows=_windows(arch, data, layers, read),
            hidden_act="silu",
            eos_token_ids=_token_ids(data.get("eos_token_id"), f"{what}: eos_token_id"),
            bos_token_id=next(iter(_token_ids(data.get("bos_token_id"), f"{what}: bos_token_id")), None),
        )


def _refuse(data: Mapping[str, Any], what: str) -> None:
    if data.get("hidden_act", "silu") != "silu":
        raise UnsupportedError(f"{what}: hidden_act {data['hidden_act']!r} is not supported; only 'silu' is")
    if data.get("quantization_config"):
        raise UnsupportedError(
            f"{what}: the weights are already quantized (quantization_config); give the original safetensors model or "
            "a GGUF file with Q4_1 linears"
        )
    if data.get("pretraining_tp", 1) not in (None, 1):
        raise UnsupportedError(f"{what}: pretraining_tp {data['pretraining_tp']!r} is not supported; only 1 is")


class _Reader:
    """Typed access to config.json."""

    def __init__(self, data: Mapping[str, Any], what: str) -> None:
        self._data = data
        self._what = what

    def size(self, key: str, default: int | None = None) -> int:
        value = self.count(key, default)
        if value == 0:
            raise InvalidInputError(f"{self._what}: {key} must be positive, found 0")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        value = self._data.get(key)
        value = default if value is None else value
        if type(value) is not int or value < 0:
            raise InvalidInputError(f"{self._what}: {key} must be a whole number, found {value!r}")
        return value

    def positive(self, key: str, default: float) -> float:
        value = self._data.get(key, default)
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise InvalidInputError(f"{self._what}: {key} must be a positive number, found {value!r}")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self._data.get(key, False)
        if type(value) is not bool:
            raise InvalidInputError(f"{self._what}: {key} must be true or false, found {value!r}")
        return value

    def strings(self, key: str, length: int) -> list[str] | None:
        value = self._data.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != length:
            raise InvalidInputError(f"{self._what}: {key} must be a list of {length} strings")
        return [str(item) for item in value]


def _windows(arch: str, data: Mapping[str, Any], layers: int, read: _Reader) -> tuple[int | None, ...]:
    """The window of each layer, with the semantics and the defaults of transformers' configuration classes."""
    if arch == "llama":
        return (None,) * layers
    none_given = "sliding_window" in data and data["sliding_window"] is None
    if arch == "mistral":
        # Mistral's model has no per-layer types; an absent window means the configuration class's default, null none.
        return (None if none_given else read.size("sliding_window", 4096),) * layers
    used = read.flag("use_sliding_window") and not none_given
    window = read.size("sliding_window", 4096) if used else None
    types = read.strings("layer_types", layers)
    if types is None:
        first = read.count("max_window_layers", 28)
        return tuple(window if i >= first else None for i in range(layers))
    unknown = set(types) - {"full_attention", "sliding_attention"}
    if unknown:
        raise UnsupportedError(f"layer_types: {', '.join(sorted(unknown))} is not supported by a {arch} decoder")
    if window is None and "sliding_attention" in types:
        raise InvalidInputError("layer_types has 'sliding_attention', but no sliding window is set")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _token_ids(value: Any, what: str) -> tuple[int, ...]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if any(type(i) is not int or i < 0 for i in ids):
        raise InvalidInputError(f"{what}: expected token ids, found {value!r}")
    return tuple(dict.fromkeys(ids))


def _canonical(value: Any) -> Any:
    if isinstance(value, float):
        return str(np.float32(value))
    if isinstance(value, Mapping):
        return {k: _canonical(v) for k, v in value.items()}
    return [_canonical(v) for v in value] if isinstance(value, tuple) else value
