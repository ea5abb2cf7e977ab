"""PEFT configurations without PEFT: what is read, what is refused, and that nothing is ignored."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.registry.lab import BASE, MODULES, PARAMS, random_tensors, safetensors_bytes
from weft_registry import artifact, peft_format, validation
from weft_registry.errors import InvalidInputError, UnsupportedError
from weft_registry.kinds.low_rank import LowRankParams
from weft_registry.kinds.qalora import QaLoraParams

A0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def shapes(kind: str, params: Any = None) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in random_tensors(kind, params=params).items()}


def stock(**changes: Any) -> dict[str, Any]:
    """The LoRA configuration that goes with PARAMS["lora"], as PEFT 0.21.2 saves one."""
    return {
        "alora_invocation_tokens": None,
        "alpha_pattern": {},
        "arrow_config": None,
        "auto_mapping": None,
        "base_model_name_or_path": "somebody/else",
        "bias": "none",
        "corda_config": None,
        "ensure_weight_tying": False,
        "eva_config": None,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "kasa_config": None,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": 8,
        "lora_bias": False,
        "lora_dropout": 0.05,
        "lora_ga_config": None,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "monteclora_config": None,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "qalora_group_size": 16,
        "r": 4,
        "rank_pattern": {"layers.1.mlp.down_proj": 2},
        "revision": None,
        "target_modules": ["q_proj", "k_proj", "down_proj"],
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_bdlora": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
        "velora_config": None,
        **changes,
    }


def test_a_stock_configuration_is_read() -> None:
    kind, params = peft_format.from_peft(stock(), shapes("lora"), BASE)
    assert (kind, params) == ("lora", PARAMS["lora"])
    assert params.target_modules == tuple(MODULES)  # In model order.


REFUSED: dict[str, dict[str, Any]] = {
    "DoRA": {"use_dora": True},
    "bias": {"bias": "lora_only"},
    "bias beside B": {"lora_bias": True},
    "modules to save": {"modules_to_save": ["lm_head"]},
    "token embeddings": {"trainable_token_indices": [1]},
    "transposed weights": {"fan_in_fan_out": True},
    "layer replication": {"layer_replication": [[0, 1]]},
    "activated LoRA": {"alora_invocation_tokens": [1]},
    "bare parameters": {"target_parameters": ["w"]},
    "Arrow": {"arrow_config": {"top_k": 1}},
    "KaSA": {"kasa_config": {"beta": 1}},
    "BD-LoRA": {"use_bdlora": {"nblocks": 2}},
    "Monte-CLoRA": {"monteclora_config": {"a": 1}},
    "Megatron": {"megatron_config": {"a": 1}},
    "tied embeddings": {"ensure_weight_tying": True},
    "PiSSA changed the base": {"init_lora_weights": "pissa_niter_4"},
    "CorDA changed the base": {"init_lora_weights": "corda"},
    "LoftQ changed the base": {"init_lora_weights": "loftq"},
    "OLoRA changed the base": {"init_lora_weights": "olora"},
    "a key from the future": {"use_future": 1},
    "remote code": {"auto_mapping": {"base_model_class": "X", "parent_library": "y"}},
    "remote code beside transformers": {
        "auto_mapping": {"base_model_class": "X", "parent_library": "transformers_modules.models.evil"}
    },
    "another task": {"task_type": "SEQ_CLS"},
    "rank zero": {"r": 0},
    "rank as text": {"r": "4"},
    "rank true": {"r": True},
    "another rank": {"r": 3},
    "a pattern with another rank": {"rank_pattern": {"q_proj": 7}},
    "rank pattern that is a list": {"rank_pattern": [4]},
    "alpha as text": {"lora_alpha": "8"},
    "alpha missing": {"lora_alpha": None},
    "endless alpha": {"lora_alpha": 1e400},
    "alpha pattern as text": {"alpha_pattern": {"q_proj": "8"}},
    "rsLoRA as a number": {"use_rslora": 1},
    "targets without a module that has tensors": {"target_modules": ["q_proj", "k_proj"]},
    "targets that are numbers": {"target_modules": [1]},
    "a pattern that runs for ever": {"alpha_pattern": {"(a+)+": 1}},
}


def test_the_mapping_that_stock_peft_writes_without_a_task_type_is_let_through() -> None:
    mapping = {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama.modeling_llama"}
    kind, _ = peft_format.from_peft(stock(auto_mapping=mapping, task_type=None), shapes("lora"), BASE)
    assert kind == "lora"


@pytest.mark.parametrize("case", REFUSED)
def test_what_changes_the_result_is_refused_by_name(case: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        peft_format.from_peft(stock(**REFUSED[case]), shapes("lora"), BASE)
    (key,) = REFUSED[case]
    assert key in caught.value.message or "rank" in caught.value.message


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_dropout": 0.5},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        {"init_lora_weights": "orthogonal"},
        {"exclude_modules": ["o_proj"]},
        {"layers_to_transform": [0, 1], "layers_pattern": "layers"},
        {"target_modules": "all-linear"},
        {"target_modules": ".*(q|k|down)_proj"},
        {"target_modules": list(MODULES)},
        {"target_modules": None},
        {"use_future": None},
        {"use_future": False},
    ],
)
def test_what_only_trained_or_selected_is_let_through(changes: dict[str, Any]) -> None:
    assert peft_format.from_peft(stock(**changes), shapes("lora"), BASE)[1] == PARAMS["lora"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (A0.replace("lora_A.weight", "lora_magnitude_vector"), "DoRA"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "embeddings"),
        (A0.replace("lora_A.weight", "lora_B.bias"), "biases"),
        ("base_model.model.lm_head.modules_to_save.weight", "fully trained"),
        ("base_model.model.score.weight", "no LoRA tensor"),
        (A0.replace("q_proj", "x_proj"), "missing"),
    ],
)
def test_a_tensor_that_is_not_lora_is_refused_by_name(name: str, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words) as caught:
        peft_format.from_peft(stock(target_modules=None), {**shapes("lora"), name: (4, 32)}, BASE)
    assert name.rpartition(".lora")[0] in caught.value.message


@pytest.mark.parametrize("peft_type", ["IA3", "LOHA", "PROMPT_TUNING", None, 3, "x" * 5000])
def test_another_method_is_unsupported(peft_type: Any) -> None:
    with pytest.raises(UnsupportedError, match="lora, prefix, qalora"):
        peft_format.from_peft({"peft_type": peft_type}, {}, BASE)


VARIED = LowRankParams(
    4, 8.0, True, tuple(MODULES), {"model.layers.1.mlp.down_proj": 2}, {"model.layers.0.self_attn.k_proj": 12.5}
)
ALL: list[tuple[str, Any]] = [
    *PARAMS.items(),
    ("lora", VARIED),
    ("qalora", QaLoraParams(**vars(replace(VARIED, alpha=0.3)), group_size=8)),
]


@pytest.mark.parametrize(("kind", "params"), ALL, ids=[f"{kind}{index}" for index, (kind, _) in enumerate(ALL)])
def test_to_peft_and_back_is_the_same(kind: str, params: Any) -> None:
    config = json.loads(peft_format.config_bytes(peft_format.to_peft(kind, params, BASE)))
    assert peft_format.config_differences(config, shapes(kind, params), kind, params, BASE) == []
    back_kind, back = peft_format.from_peft(config, shapes(kind, params), BASE)
    assert back_kind == kind
    if kind != "qalora":  # There alpha is divided on the way out and multiplied on the way in.
        assert vars(back) == vars(params)


@pytest.mark.parametrize(
    ("pooling", "factor"), [("sum", lambda n_in: 1.0), ("mean", lambda n_in: 1 / 8), ("peft", lambda n_in: n_in / 64)]
)
@pytest.mark.parametrize("use_rslora", [False, True])
def test_pooling_is_converted_exactly_into_alpha(
    pooling: str, factor: Callable[[int], float], use_rslora: bool
) -> None:
    """`s B A mean(x)` and `s B A mean(x) in/g`, against what we then compute: `s' B A sum(x)`."""
    params = replace(PARAMS["qalora"], use_rslora=use_rslora)
    config = {**stock(rank_pattern={}), "use_qalora": True, "qalora_group_size": 8, "use_rslora": use_rslora}
    _, found = peft_format.from_peft(config, shapes("qalora", params), BASE, pooling)
    for module, (_, n_in) in MODULES.items():
        assert found.alpha_of(module) == 8 * factor(n_in)
        theirs = LowRankParams(4, 8.0, use_rslora, (module,), {}, {}).scaling(module)
        x = np.random.default_rng(0).standard_normal(n_in).reshape(-1, 8)
        pooled = {"sum": x.sum(1), "mean": x.mean(1), "peft": x.mean(1) * (n_in // 8)}[pooling]
        np.testing.assert_allclose(found.scaling(module) * x.sum(1), theirs * pooled, rtol=1e-12)


def test_a_mean_pooled_file_of_the_papers_repository_is_imported(tmp_path: Path) -> None:
    """It says nothing of QA-LoRA or its group size; the artifact says all of it, in PEFT's terms too."""
    source = tmp_path / "source"
    source.mkdir()
    (source / artifact.WEIGHTS).write_bytes(safetensors_bytes(random_tensors("qalora")))
    (source / artifact.CONFIG).write_text(json.dumps(stock(rank_pattern={})))
    before = (source / artifact.CONFIG).read_bytes()
    made = peft_format.import_directory(source, BASE, tmp_path / "made", name="x", pooling="mean")
    manifest = validation.validate_directory(made, BASE)
    assert manifest.kind == "qalora"
    assert manifest.adapter["alpha"] == "1"
    assert json.loads((made / artifact.CONFIG).read_text())["use_qalora"] is True
    assert (source / artifact.CONFIG).read_bytes() == before
    assert sorted(path.name for path in source.iterdir()) == [artifact.CONFIG, artifact.WEIGHTS]


def test_a_pooling_of_something_that_does_not_pool_is_refused() -> None:
    config = peft_format.to_peft("prefix", PARAMS["prefix"], BASE)
    with pytest.raises(InvalidInputError, match="pool"):
        peft_format.from_peft(config, shapes("prefix"), BASE, "mean")
    with pytest.raises(InvalidInputError, match="peft, mean, sum"):
        peft_format.from_peft(stock(), shapes("lora"), BASE, "max")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_virtual_tokens": 4},
        {"num_virtual_tokens": None},
        {"num_layers": 3},
        {"token_dim": 15},
        {"num_transformer_submodules": 2},
        {"modules_to_save": ["lm_head"]},
        {"unknown": 1},
    ],
)
def test_a_prefix_that_does_not_add_up_is_refused(changes: dict[str, Any]) -> None:
    config = {**peft_format.to_peft("prefix", PARAMS["prefix"], BASE), **changes}
    with pytest.raises(InvalidInputError):
        peft_format.from_peft(config, shapes("prefix"), BASE)


def test_a_prefix_has_one_tensor() -> None:
    config = peft_format.to_peft("prefix", PARAMS["prefix"], BASE)
    with pytest.raises(InvalidInputError, match="one tensor"):
        peft_format.from_peft(config, {**shapes("prefix"), "x": (1,)}, BASE)
