"""Safetensors directories of every supported architecture, quantized on import."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from weft_adapters.base import StoredBase, add_base, dequantized_state_dict
from weft_registry.base import BaseStore
from weft_registry.errors import AlreadyExistsError, InvalidInputError, NotFoundError, UnsupportedError, WeftError
from weft_registry.home import Home

Source = Callable[..., Path]
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")


def quiet(line: str) -> None:
    assert line


def copy(source: Path, target: Path, **config: Any) -> Path:
    """A private copy of a model directory, with fields of its config.json replaced."""
    shutil.copytree(source, target)
    path = target / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return target


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_quantized_weights_stay_within_half_a_step(arch: str, tiny_base: Any, tiny_source: Source) -> None:
    stored = tiny_base(arch).stored
    original = load_file(tiny_source(arch) / "model.safetensors")
    for module in stored.spec.linears:
        weight = stored.int4(module)
        dense = original[f"{module}.weight"]
        step = weight.scale_NG.double().repeat_interleave(32, dim=1)
        low = weight.minimum_NG.double().repeat_interleave(32, dim=1)
        # Rounding the minimum and 15 scales to float16 (half an ulp, 2^-11 relative each) moves the ends of the range.
        slack = 2**-11 * (low.abs() + 15 * step)
        assert bool(((weight.dequantize().double() - dense.double()).abs() <= step / 2 + slack).all()), module


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_everything_but_the_linears_is_kept_as_it_was(
    arch: str, dtype: str, tiny_base: Any, tiny_source: Source
) -> None:
    stored = tiny_base(arch, dtype=dtype).stored
    original = load_file(tiny_source(arch, dtype=dtype) / "model.safetensors")
    kept = [name for name in original if name.removesuffix(".weight") not in stored.spec.linears]
    assert kept
    for name in kept:
        assert stored.tensor(name).dtype == getattr(torch, dtype)
        assert torch.equal(stored.tensor(name), original[name])


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_dequantized_state_loads_into_transformers_completely(arch: str, tiny_base: Any) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    stored = tiny_base(arch).stored
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(stored.path))
    model.load_state_dict(dequantized_state_dict(stored), strict=True)
    assert bool(torch.isfinite(model.eval()(torch.arange(12)[None]).logits).all())


def test_biases_are_where_the_architecture_has_them(tiny_base: Any) -> None:
    def with_bias(*args: Any, **overrides: Any) -> set[str]:
        stored = tiny_base(*args, **overrides).stored
        return {m.rpartition(".")[2] for m in stored.spec.linears if stored.bias(m) is not None}

    qkv, mlp = {"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj", "down_proj"}
    assert with_bias("llama") == set()
    assert with_bias("qwen2") == qkv
    assert with_bias("qwen3", attention_bias=True) == {*qkv, "o_proj"}
    assert with_bias("llama", attention_bias=True, mlp_bias=True) == {*qkv, "o_proj", *mlp}


def test_a_sharded_directory_gives_the_same_base(tmp_path: Path, tiny_source: Source) -> None:
    source = tiny_source("llama")
    sharded = copy(source, tmp_path / "sharded")
    tensors = load_file(source / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    (sharded / "model.safetensors").unlink()
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, sharded / file)
    table = {name: file for file, part in parts.items() for name in part}
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    home = Home(tmp_path / "home")
    whole = add_base(home, "whole", str(source), report=quiet)
    assert add_base(home, "sharded", str(sharded), report=quiet).fingerprint.weights_sha256 == (
        whole.fingerprint.weights_sha256
    )


@pytest.mark.parametrize("group_size", [32, 64])
def test_the_group_size_is_the_one_asked_for(group_size: int, tiny_base: Any) -> None:
    stored = tiny_base("llama", group_size=group_size).stored
    assert stored.spec.fingerprint.quant.group_size == group_size
    assert {stored.int4(m).group_size for m in stored.spec.linears} == {group_size}


def test_the_tokenizer_and_its_template_come_along(tiny_base: Any) -> None:
    stored = tiny_base("llama").stored
    tokenizer = Tokenizer.from_file(str(stored.tokenizer_dir / "tokenizer.json"))
    settings = json.loads((stored.tokenizer_dir / "tokenizer_config.json").read_text())
    assert tokenizer.decode(tokenizer.encode("grün, 42 🦊").ids) == "grün, 42 🦊"
    assert settings["eos_token"] == "<|im_end|>"
    assert "im_start" in settings["chat_template"]
    assert tokenizer.token_to_id(settings["eos_token"]) in stored.config.eos_token_ids


def test_a_tokenizer_without_tokenizer_json_is_converted(tmp_path: Path, tiny_source: Source) -> None:
    source = copy(tiny_source("llama"), tmp_path / "model")
    whole = Tokenizer.from_file(str(source / "tokenizer.json"))
    whole.model.save(str(source))
    (source / "tokenizer.json").unlink()
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "GPT2Tokenizer"}))
    home = Home(tmp_path / "home")
    add_base(home, "b", str(source), report=quiet)
    converted = Tokenizer.from_file(str(home.bases / "b" / "tokenizer.json"))
    text = "The capital of France<|im_end|>"
    assert converted.encode(text).ids == whole.encode(text).ids


def test_generation_config_adds_its_end_tokens(tmp_path: Path, tiny_source: Source) -> None:
    source = copy(tiny_source("llama"), tmp_path / "model")
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    home = Home(tmp_path / "home")
    add_base(home, "b", str(source), report=quiet)
    assert StoredBase.open(home.bases / "b").config.eos_token_ids == (2, 0)


def test_a_name_taken_by_other_weights_is_refused_and_kept(tmp_path: Path, tiny_source: Source) -> None:
    home = Home(tmp_path / "home")
    first = add_base(home, "b", str(tiny_source("llama")), report=quiet)
    assert add_base(home, "b", str(tiny_source("llama")), report=quiet) == first
    with pytest.raises(AlreadyExistsError, match="other weights"):
        add_base(home, "b", str(tiny_source("llama", seed=1)), report=quiet)
    assert BaseStore(home.bases).get("b") == first


def nan_weight(source: Path) -> None:
    damage(source, "model.layers.1.mlp.up_proj.weight", lambda t: t[3].fill_(float("nan")))


def infinite_norm(source: Path) -> None:
    damage(source, "model.norm.weight", lambda t: t[0].fill_(float("inf")))


def damage(source: Path, name: str, change: Callable[[torch.Tensor], Any]) -> None:
    tensors = load_file(source / "model.safetensors")
    change(tensors[name])
    save_file(tensors, source / "model.safetensors")


def missing_tensor(source: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    del tensors["model.layers.0.self_attn.v_proj.weight"]
    save_file(tensors, source / "model.safetensors")


def extra_tensor(source: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    save_file(tensors | {"model.layers.0.moe.router.weight": torch.ones(2)}, source / "model.safetensors")


def wrong_dtype(source: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    save_file(tensors | {"model.norm.weight": tensors["model.norm.weight"].double()}, source / "model.safetensors")


def truncated(source: Path) -> None:
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def lying_header(source: Path) -> None:
    path = source / "model.safetensors"
    path.write_bytes((1 << 62).to_bytes(8, "little") + path.read_bytes()[8:])


def pickles_only(source: Path) -> None:
    (source / "model.safetensors").rename(source / "pytorch_model.bin")


def no_tokenizer(source: Path) -> None:
    (source / "tokenizer.json").unlink()


def broken_tokenizer(source: Path) -> None:
    (source / "tokenizer.json").write_text("{}")


def different_tied_head(source: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, source / "model.safetensors")


def unlisted_shards(source: Path) -> None:
    (source / "model.safetensors").rename(source / "a.safetensors")
    shutil.copy(source / "a.safetensors", source / "b.safetensors")


def escaping_index(source: Path) -> None:
    table = {"model.norm.weight": "../elsewhere.safetensors"}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (nan_weight, "model.layers.1.mlp.up_proj.weight has NaN"),
        (infinite_norm, "model.norm.weight has NaN or infinite"),
        (missing_tensor, "missing: model.layers.0.self_attn.v_proj.weight"),
        (extra_tensor, "unknown: model.layers.0.moe.router.weight"),
        (wrong_dtype, "model.norm.weight is F64"),
        (truncated, "not a whole safetensors file"),
        (lying_header, "not a whole safetensors file"),
        (pickles_only, r"only pickles \(pytorch_model.bin\)"),
        (no_tokenizer, "no tokenizer"),
        (broken_tokenizer, "cannot read it"),
        (different_tied_head, "ties lm_head.weight"),
        (unlisted_shards, "no model.safetensors.index.json"),
        (escaping_index, "not beside it"),
    ],
)
def test_bad_directories_are_refused_and_nothing_is_stored(
    harm: Callable[[Path], None], said: str, tmp_path: Path, tiny_source: Source
) -> None:
    source = copy(tiny_source("llama"), tmp_path / "model")
    harm(source)
    refuses(tmp_path, source, said)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"hidden_size": 128}, "the config says"),
        ({"quantization_config": {"quant_method": "gptq"}}, "already quantized"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "rope_type 'yarn'"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers"),
        ({"vocab_size": 300}, "vocabulary of 300|the config says"),
    ],
)
def test_unsupported_configurations_are_refused_by_name(
    config: dict[str, Any], said: str, tmp_path: Path, tiny_source: Source
) -> None:
    refuses(tmp_path, copy(tiny_source("llama"), tmp_path / "model", **config), said)


@pytest.mark.parametrize(
    ("options", "said", "kind"),
    [
        ({"bits": 8}, "--bits 8", UnsupportedError),
        ({"group_size": 48}, "--group-size 48", InvalidInputError),
        ({"group_size": 128}, "64 inputs do not divide into groups of 128", InvalidInputError),
    ],
)
def test_quantization_options_are_checked(
    options: dict[str, int], said: str, kind: type[WeftError], tmp_path: Path, tiny_source: Source
) -> None:
    with pytest.raises(kind, match=said):
        add_base(Home(tmp_path / "home"), "b", str(tiny_source("llama")), report=quiet, **options)


@pytest.mark.parametrize("options", [{"bits": 3}, {"group_size": 64}])
def test_a_package_is_not_downloaded_for_a_grid_that_its_file_does_not_have(
    options: dict[str, int], tmp_path: Path
) -> None:
    said: list[str] = []
    with pytest.raises(InvalidInputError, match="weft base requantize"):
        add_base(Home(tmp_path / "home"), "b", "pypi:no-such-package", report=said.append, **options)
    assert said == []


def test_sources_that_are_none_are_refused(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    pickle = tmp_path / "pytorch_model.bin"
    pickle.write_bytes(b"\x80\x02}q\x00.")
    for source, kind, said in (
        (str(pickle), InvalidInputError, "is a pickle"),
        (str(tmp_path / "nothing"), NotFoundError, "neither a path"),
        (str(tmp_path), InvalidInputError, "no config.json"),
        ("pypi:../evil", InvalidInputError, "expected pypi:PACKAGE"),
        ("pypi:--index-url", InvalidInputError, "expected pypi:PACKAGE"),
        ("hf:no-slash", InvalidInputError, "expected hf:ORG/REPO"),
    ):
        with pytest.raises(kind, match=said):
            add_base(home, "b", source, report=quiet)
    with pytest.raises(InvalidInputError, match="base name"):
        add_base(home, "../b", str(tmp_path), report=quiet)
    assert BaseStore(home.bases).names() == []


def refuses(tmp_path: Path, source: Path, said: str) -> None:
    home = Home(tmp_path / "home")
    with pytest.raises((InvalidInputError, UnsupportedError), match=said):
        add_base(home, "b", str(source), report=quiet)
    assert BaseStore(home.bases).names() == []
    assert [p.name for p in home.root.rglob("*") if p.is_file() and p.name != ".import.lock"] == []
