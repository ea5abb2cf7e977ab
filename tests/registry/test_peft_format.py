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
from weft_registry.kinds import kind_schema
from weft_registry.kinds.low_rank import LowRankParams
from weft_registry.kinds.prompt import PromptParams
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
    "DoRA without magnitudes": {"use_dora": True},
    "DoRA over pooled inputs": {"use_dora": True, "use_qalora": True, "qalora_group_size": 8},
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
    key = next(iter(REFUSED[case]))
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
        ("base_model.model.lm_head.base_layer.weight", r"save_embedding_layers=False.*target_modules"),
        ("base_model.model.model.embed_tokens.weight", r"save_embedding_layers=False.*target_modules"),
        (A0.replace("q_proj", "x_proj"), "missing"),
    ],
)
def test_a_tensor_that_is_not_lora_is_refused_by_name(name: str, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words) as caught:
        peft_format.from_peft(stock(target_modules=None), {**shapes("lora"), name: (4, 32)}, BASE)
    assert name.rpartition(".lora")[0] in caught.value.message


def test_what_an_initialisation_did_to_the_base_decides_the_way_out() -> None:
    """PEFT converts what was moved out of the base's weights, and not what was trained over weights it quantized."""
    for initial in ("pissa", "pissa_niter_4", "olora", "corda", "lora_ga"):
        with pytest.raises(InvalidInputError, match=r"save_pretrained\(path_initial_model_for_weight_conversion"):
            peft_format.from_peft(stock(init_lora_weights=initial), shapes("lora"), BASE)
    with pytest.raises(InvalidInputError, match=r"no conversion.*init: loftq") as caught:
        peft_format.from_peft(stock(init_lora_weights="loftq"), shapes("lora"), BASE)
    assert "path_initial" not in caught.value.message


@pytest.mark.parametrize("peft_type", ["ADALORA", "LOKR", "LOHA", "CPT", None, 3, "x" * 5000])
def test_another_method_is_unsupported(peft_type: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"IA3, LORA, PREFIX_TUNING.*lora.*prefix.*prompt.*qalora"):
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


@pytest.mark.parametrize(
    "changes",
    [
        {"num_virtual_tokens": 4},
        {"num_virtual_tokens": None},
        {"token_dim": 31},
        {"token_dim": None},
        {"num_transformer_submodules": 2},
        {"modules_to_save": ["lm_head"]},
        {"unknown": 1},
    ],
)
def test_a_soft_prompt_that_does_not_add_up_is_refused(changes: dict[str, Any]) -> None:
    config = {**peft_format.to_peft("prompt", PARAMS["prompt"], BASE), **changes}
    with pytest.raises(InvalidInputError) as caught:
        peft_format.from_peft(config, shapes("prompt"), BASE)
    assert next(iter(changes)) in caught.value.message or "prompt_embeddings" in caught.value.message


def test_a_soft_prompt_has_one_tensor_of_the_bases_width_and_leaves_room_for_a_text() -> None:
    config = peft_format.to_peft("prompt", PARAMS["prompt"], BASE)
    with pytest.raises(InvalidInputError, match=r"one tensor.*found x"):
        peft_format.from_peft(config, {**shapes("prompt"), "x": (1,)}, BASE)
    schema = kind_schema("prompt")
    with pytest.raises(InvalidInputError, match="hidden_size: 64, but the base tiny/base has 32"):
        schema.tensors(PromptParams(5, 64), BASE)
    with pytest.raises(InvalidInputError, match="128 leaves nothing of the base's context of 128: take at most 127"):
        schema.tensors(PromptParams(128, 32), BASE)
    assert schema.tensors(PromptParams(127, 32), BASE)["prompt_embeddings"].shape == (127, 32)


@pytest.mark.parametrize(
    "history",
    [
        {"peft_type": "P_TUNING", "encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 7},
        {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "say", "tokenizer_name_or_path": "a/b"},
    ],
)
def test_how_a_soft_prompt_was_trained_is_let_through(history: dict[str, Any]) -> None:
    config = {**peft_format.to_peft("prompt", PARAMS["prompt"], BASE), **history}
    assert peft_format.from_peft(config, shapes("prompt"), BASE) == ("prompt", PARAMS["prompt"])


M0 = A0.replace(".lora_A.weight", ".lora_magnitude_vector")
MAGNITUDES: dict[str, tuple[dict[str, tuple[int, ...] | None], str]] = {
    "one missing": ({M0: None}, "missing"),
    "one of another width": ({M0: (16,)}, r"\(32,\)"),
    "one of another rank": ({M0: (32, 1)}, r"\(32,\)"),
    "one at a module without factors": ({M0.replace("q_proj", "x_proj"): (32,)}, "without A and B"),
    "a name that PEFT has in memory only": ({M0 + ".weight": (32,)}, "DoRA"),
}


@pytest.mark.parametrize("case", MAGNITUDES)
def test_magnitudes_that_do_not_go_with_the_factors_are_refused_by_name(case: str) -> None:
    changes, words = MAGNITUDES[case]
    found = {name: shape for name, shape in {**shapes("dora"), **changes}.items() if shape is not None}
    with pytest.raises(InvalidInputError, match=words) as caught:
        peft_format.from_peft(stock(use_dora=True), found, BASE)
    assert next(iter(changes))[:60] in caught.value.message


def test_magnitudes_are_kept_wide() -> None:
    specs = kind_schema("dora").tensors(PARAMS["dora"], BASE)
    assert {name for name, spec in specs.items() if spec.wide} == {n for n in specs if n.endswith("magnitude_vector")}
    assert all(spec.wide for spec in kind_schema("ia3").tensors(PARAMS["ia3"], BASE).values())


DOWN = "base_model.model.model.layers.1.mlp.down_proj.ia3_l"
QUERY = "base_model.model.model.layers.0.self_attn.q_proj.ia3_l"
VECTORS: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]], str]] = {
    "an input that modules share": ({"feedforward_modules": None}, {QUERY: (1, 32)}, "o_proj and down_proj"),
    "an output that the list calls an input": ({"feedforward_modules": ["down_proj"]}, {DOWN: (32, 1)}, "output"),
    "an input that the list does not name": ({"feedforward_modules": []}, {DOWN: (1, 64)}, "input"),
    "a vector of neither side": ({}, {DOWN: (32, 64)}, r"expected \(out, 1\)"),
    "a flat vector": ({}, {DOWN: (64,)}, r"expected \(out, 1\)"),
    "a target without a vector in the list": ({"target_modules": ["down_proj"]}, {}, "target_modules"),
    "modules to save": ({"modules_to_save": ["lm_head"]}, {}, "modules_to_save"),
    "transposed weights": ({"fan_in_fan_out": True}, {}, "fan_in_fan_out"),
    "a list that is none": ({"feedforward_modules": [1]}, {}, "feedforward_modules"),
    "a key from the future": ({"use_future": 1}, {}, "use_future"),
    "another tensor": ({}, {A0: (4, 32)}, "no "),
}


@pytest.mark.parametrize("case", VECTORS)
def test_an_ia3_file_that_means_something_else_is_refused_by_name(case: str) -> None:
    changes, other, words = VECTORS[case]
    config = {**peft_format.to_peft("ia3", PARAMS["ia3"], BASE), **changes}
    with pytest.raises(InvalidInputError, match=words):
        peft_format.from_peft(config, {**shapes("ia3"), **other}, BASE)


@pytest.mark.parametrize(
    "changes",
    [
        {"feedforward_modules": None, "target_modules": None},
        {"feedforward_modules": r".*1\.mlp\.down_proj", "target_modules": ".*"},
        {"init_ia3_weights": False},
        {"exclude_modules": ["o_proj"]},
    ],
)
def test_what_only_selects_ia3_modules_is_let_through(changes: dict[str, Any]) -> None:
    config = {**peft_format.to_peft("ia3", PARAMS["ia3"], BASE), **changes}
    assert peft_format.from_peft(config, shapes("ia3"), BASE) == ("ia3", PARAMS["ia3"])


def test_another_side_of_a_module_is_a_difference() -> None:
    config = peft_format.to_peft("ia3", PARAMS["ia3"], BASE)
    other = replace(PARAMS["ia3"], feedforward_modules=())
    (found,) = peft_format.config_differences(config, shapes("ia3"), "ia3", other, BASE)
    assert "model.layers.1.mlp.down_proj: a feedforward module" in found


def test_a_manifest_may_not_scale_an_input_that_modules_share() -> None:
    block = kind_schema("ia3").block(PARAMS["ia3"])
    with pytest.raises(InvalidInputError, match=r"q_proj.* modules beside it"):
        kind_schema("ia3").parse({**block, "feedforward_modules": ["model.layers.0.self_attn.q_proj"]})
    with pytest.raises(InvalidInputError, match="not one of target_modules"):
        kind_schema("ia3").parse({**block, "feedforward_modules": ["model.layers.9.mlp.down_proj"]})
