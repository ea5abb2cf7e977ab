"""config.json, against transformers' own configuration classes."""

from __future__ import annotations

import re
from typing import Any

import pytest
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from weft_adapters.base.config import ModelConfig
from weft_registry.errors import InvalidInputError, UnsupportedError

SMALL = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def parse(config: Any, **changes: Any) -> ModelConfig:
    return ModelConfig.from_json(config.to_dict() | changes)


@pytest.mark.parametrize("kind", [LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config])
def test_dimensions_are_those_of_transformers(kind: Any) -> None:
    theirs = kind(**SMALL)
    ours = parse(theirs)
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert (ours.head_dim, ours.num_kv_heads, ours.num_layers) == (head_dim, 2, 4)
    assert (ours.rope_theta, ours.rms_norm_eps) == (theirs.rope_parameters["rope_theta"], theirs.rms_norm_eps)
    assert (ours.vocab_size, ours.context_length) == (theirs.vocab_size, theirs.max_position_embeddings)


def test_old_and_new_spellings_of_rope_agree() -> None:
    new = LlamaConfig(**SMALL, rope_parameters=LLAMA3).to_dict()
    scaling = {k: v for k, v in LLAMA3.items() if k != "rope_theta"}
    old = {k: v for k, v in new.items() if k != "rope_parameters"} | {"rope_theta": 5e5, "rope_scaling": scaling}
    assert ModelConfig.from_json(old) == ModelConfig.from_json(new)
    assert ModelConfig.from_json(new).rope_scaling == scaling
    oldest = old | {"rope_scaling": {"type": "linear", "factor": 2}}
    assert ModelConfig.from_json(oldest).rope_scaling == {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize("kind", ["dynamic", "yarn", "longrope", "su"])
def test_other_rope_forms_are_refused_by_name(kind: str) -> None:
    with pytest.raises(UnsupportedError, match=kind):
        parse(LlamaConfig(**SMALL), rope_parameters={"rope_type": kind, "rope_theta": 1e4, "factor": 2.0})


@pytest.mark.parametrize(
    ("config", "windows"),
    [
        (LlamaConfig(**SMALL), None),
        (MistralConfig(**SMALL, sliding_window=None), None),
        (MistralConfig(**SMALL, sliding_window=7), (7, 7, 7, 7)),
        (MistralConfig(**SMALL), (4096,) * 4),
        (Qwen2Config(**SMALL, sliding_window=7), None),
        (Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=7, max_window_layers=3), (None, None, None, 7)),
        (
            Qwen3Config(
                **SMALL,
                use_sliding_window=True,
                sliding_window=7,
                layer_types=["sliding_attention", "full_attention"] * 2,
            ),
            (7, None, 7, None),
        ),
    ],
)
def test_windows_are_per_layer_as_in_transformers(config: Any, windows: tuple[int | None, ...] | None) -> None:
    assert parse(config).sliding_window == windows


def test_a_window_left_out_has_the_class_default() -> None:
    content = MistralConfig(**SMALL).to_dict()
    del content["sliding_window"]
    assert ModelConfig.from_json(content).sliding_windows == (4096,) * 4
    content = Qwen2Config(**SMALL).to_dict() | {"use_sliding_window": True, "max_window_layers": 2}
    del content["layer_types"]
    assert ModelConfig.from_json(content | {"sliding_window": 9}).sliding_windows == (None, None, 9, 9)


def test_the_digest_follows_the_mathematics_only() -> None:
    base = parse(LlamaConfig(**SMALL, rms_norm_eps=1e-5))
    assert parse(LlamaConfig(**SMALL, rms_norm_eps=9.999999747378752e-06)).sha256() == base.sha256()
    assert parse(LlamaConfig(**SMALL, rms_norm_eps=1e-5, eos_token_id=[3, 4])).sha256() == base.sha256()
    for change in (
        {"rms_norm_eps": 1e-6},
        {"num_attention_heads": 8},
        {"attention_bias": True},
        {"rope_parameters": LLAMA3},
        {"tie_word_embeddings": True},
    ):
        assert parse(LlamaConfig(**(SMALL | {"rms_norm_eps": 1e-5} | change))).sha256() != base.sha256()


def test_end_tokens_are_a_tuple_however_they_are_written() -> None:
    assert parse(LlamaConfig(**SMALL), eos_token_id=7).eos_token_ids == (7,)
    assert parse(LlamaConfig(**SMALL), eos_token_id=[7, 9, 7]).eos_token_ids == (7, 9)
    assert parse(LlamaConfig(**SMALL), eos_token_id=None).eos_token_ids == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"num_key_value_heads": 3}, "not a multiple of 3"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"head_dim": 15}, "odd"),
        ({"rope_parameters": {"rope_theta": -1.0}}, "rope_theta"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "rope_scaling.factor"),
    ],
)
def test_mistyped_fields_are_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError, match=re.escape(said)):
        parse(LlamaConfig(**SMALL), **changes)


def test_settings_this_decoder_lacks_are_refused() -> None:
    for changes in ({"pretraining_tp": 2}, {"partial_rotary_factor": 0.5}, {"model_type": "phi3"}):
        with pytest.raises(UnsupportedError, match=next(iter(changes))):
            parse(LlamaConfig(**SMALL), **changes)
    with pytest.raises(UnsupportedError, match="chunked_attention"):
        parse(Qwen2Config(**SMALL), layer_types=["chunked_attention"] * 4)
