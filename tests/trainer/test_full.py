"""Full and partial training against transformers' own dense model, and what becomes of it in the artifact."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_models import AddedBase
from tests.trainer.oracles import BATCH, LABELS, dense_model
from tests.trainer.results import resumed, weights
from weft_adapters.extract_checkpoint import extract_checkpoint
from weft_adapters.extraction import Truncation
from weft_adapters.int4 import Int4Linear
from weft_registry import artifact as artifacts
from weft_registry.errors import InvalidInputError
from weft_registry.validation import validate
from weft_trainer.config.adapter import ExtractOptions, FullOptions
from weft_trainer.config.run import TrainConfig
from weft_trainer.data.tokenization import BaseTokenizer
from weft_trainer.evaluate import evaluate
from weft_trainer.methods import METHODS
from weft_trainer.methods.full import FullModel
from weft_trainer.modeling.base import build
from weft_trainer.progress import QuietReporter

MakeConfig = Callable[..., TrainConfig]
Run = Callable[[TrainConfig, AddedBase], Path]
WHOLE = {"extract": {"rank": 128}}


def attach(base: AddedBase, options: FullOptions, method: str = "partial", dtype: Any = torch.float32) -> FullModel:
    tokenizer = BaseTokenizer(base.stored.tokenizer_dir)
    made = METHODS[method].params(options, base.stored.spec, tokenizer)
    model = METHODS[method].attach(build(base.stored, dtype), made, options, tokenizer)
    assert isinstance(model, FullModel)
    return model


def metrics(directory: Path) -> dict[str, float]:
    return {metric.name: float(metric.value) for metric in artifacts.read(directory).metrics}


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_loss_and_gradients_of_every_weight_are_those_of_the_dense_model(
    tiny_base: Callable[..., AddedBase], arch: str
) -> None:
    base = tiny_base(arch)
    ours = attach(base, FullOptions(unfreeze=("*",), ignore_rest=True))
    theirs = dense_model(base).train()
    loss, wanted = ours(**BATCH, labels=LABELS)["loss"], theirs(**BATCH, labels=LABELS).loss
    torch.testing.assert_close(loss, wanted)
    loss.backward()
    wanted.backward()
    oracle = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert ours.weights.keys() == oracle.keys(), "the tied head is the embedding, and nothing is left out"
    for name, grad in oracle.items():
        torch.testing.assert_close(ours.weights[name].grad, grad, atol=1e-6, rtol=1e-3)


def test_trained_weights_are_float32_whatever_the_base_computes_in(tiny_base: Callable[..., AddedBase]) -> None:
    base = tiny_base()
    ours = attach(base, FullOptions(unfreeze=("*",), ignore_rest=True), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in ours.trainable().values()} == {torch.float32}
    assert len(ours.trainable()) == len(ours.weights)
    assert ours.hidden(BATCH).dtype == torch.bfloat16
    loss = ours(**BATCH, labels=LABELS)["loss"]
    torch.testing.assert_close(loss, dense_model(base)(**BATCH, labels=LABELS).loss, atol=0.05, rtol=0.05)
    loss.backward()
    assert all(parameter.grad is not None for parameter in ours.weights.values())
    # A change below the grid of bfloat16 must not be lost.
    name = "model.layers.0.mlp.up_proj.weight"
    with torch.no_grad():
        ours.weights[name].mul_(1 + 1e-5)
    assert not torch.equal(ours.read(name), base.stored.int4(name.removesuffix(".weight")).dequantize())


def test_what_is_frozen_stays_int4(deep_base: AddedBase) -> None:
    ours = attach(deep_base, FullOptions(unfreeze=("model.layers.2.mlp.*", "*.3.*"), freeze=("*norm*", "*.down_proj")))
    assert ours.names == (
        "model.layers.2.mlp.gate_proj.weight",
        "model.layers.2.mlp.up_proj.weight",
        *(f"model.layers.3.self_attn.{x}_proj.weight" for x in "qkvo"),
        "model.layers.3.mlp.gate_proj.weight",
        "model.layers.3.mlp.up_proj.weight",
    )
    int4 = [name for name, module in ours.base.model.named_modules() if isinstance(module, Int4Linear)]
    assert len(int4) == 4 * 7 - len(ours.names)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (FullOptions(unfreeze=("*.upproj",)), r"'\*\.upproj' matches no weight of this base; nearest: up_proj"),
        (FullOptions(unfreeze=("model.layers.9.*",)), "matches no weight"),
        (FullOptions(unfreeze=("lm_head",)), "matches no weight"),
        (FullOptions(unfreeze=("*",)), "no LoRA can carry what model.embed_tokens.weight, model.norm.weight"),
        (FullOptions(unfreeze=("model.norm",), ignore_rest=True), "the adapter would be empty"),
        (FullOptions(unfreeze=("*.mlp.*",), freeze=("*",)), "leaves nothing"),
        (FullOptions(unfreeze=("*.mlp.*",), freeze=("*.mpl.*",)), r"adapter\.freeze: '\*\.mpl\.\*' matches no weight"),
        (FullOptions(), r"adapter\.unfreeze: missing"),
    ],
)
def test_a_pattern_that_trains_nothing_served_is_refused(deep_base: AddedBase, options: FullOptions, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        attach(deep_base, options)


def test_rank_and_energy_exclude_each_other(deep_base: AddedBase, make_config: MakeConfig) -> None:
    with pytest.raises(InvalidInputError, match="give one of the two"):
        make_config(deep_base, "full", {"extract": {"rank": 4, "energy": 0.5}})
    assert ExtractOptions(energy=0.5).rank is None


@pytest.mark.parametrize("method", ["full", "galore"])
def test_full_training_makes_a_lora_that_the_registry_accepts_with_both_scores(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, method: str
) -> None:
    options: dict[str, Any] = {"rank": 16} if method == "galore" else {}
    config = make_config(deep_base, method, {**options, "extract": {"rank": 2}}, steps=30, learning_rate=3e-3)
    directory = run(config, deep_base)
    stored = (directory / artifacts.MANIFEST).read_bytes()
    manifest = validate(stored, lambda entry: (directory / entry.path).open("rb"), deep_base.stored.spec)
    assert (manifest.kind, manifest.adapter["r"]) == ("lora", 2)
    found = metrics(directory)
    assert found["loss"] != found["loss_before_extraction"]
    assert found["examples"] == found["examples_before_extraction"]
    assert 0 < float(manifest.provenance["extraction"]["relative_error"]) < 1
    assert len(manifest.provenance["trained"]) == 4 * 9, "seven linears and two norms a layer"
    again = evaluate(directory, config.data.train, QuietReporter(), base=deep_base.name, home=deep_base.home)
    assert again.examples == 40


def test_the_score_in_the_manifest_is_that_of_the_adapter(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, tmp_path: Path
) -> None:
    config = make_config(deep_base, "full", {"extract": {"rank": 2}}, steps=20, learning_rate=3e-3)
    config = replace(config, data=replace(config.data, eval=config.data.train, eval_fraction=0.1))
    directory = run(config, deep_base)
    again = evaluate(
        directory,
        config.data.train,
        QuietReporter(),
        base=deep_base.name,
        home=deep_base.home,
        dtype=torch.float32,
        max_length=config.data.max_length,
    )
    assert metrics(directory)["loss"] == pytest.approx(again.loss, abs=1e-5)


def test_at_full_rank_nothing_is_lost_and_training_learned(
    deep_base: AddedBase, make_config: MakeConfig, run: Run
) -> None:
    found = metrics(run(make_config(deep_base, "full", WHOLE, steps=60, learning_rate=3e-3), deep_base))
    assert found["exact_match_before_extraction"] >= 0.9
    assert found["loss"] == pytest.approx(found["loss_before_extraction"], abs=1e-4)


def test_partial_training_of_high_layers_leaves_the_low_ones_to_the_cache(
    deep_base: AddedBase, make_config: MakeConfig, run: Run
) -> None:
    options = {"unfreeze": ["model.layers.3.*"], **WHOLE}
    method = METHODS["partial"]
    config = make_config(deep_base, "partial", options)
    params = method.params(config.adapter, deep_base.stored.spec, BaseTokenizer(deep_base.stored.tokenizer_dir))
    assert method.first_layer(params) == 3
    manifest = artifacts.read(run(config, deep_base))
    assert {module.split(".")[2] for module in manifest.adapter["target_modules"]} == {"3"}
    assert metrics(config.output)["loss"] == pytest.approx(metrics(config.output)["loss_before_extraction"], abs=1e-4)


def test_norms_alone_are_served_by_the_linears_after_them(
    deep_base: AddedBase, make_config: MakeConfig, run: Run
) -> None:
    options = {"unfreeze": ["*.input_layernorm"], **WHOLE}
    manifest = artifacts.read(run(make_config(deep_base, "partial", options, learning_rate=0.1), deep_base))
    assert {module.rpartition(".")[2] for module in manifest.adapter["target_modules"]} == {
        "q_proj",
        "k_proj",
        "v_proj",
    }
    found = {metric.name: float(metric.value) for metric in manifest.metrics}
    assert found["loss"] == pytest.approx(found["loss_before_extraction"], abs=1e-4)


def test_the_model_that_is_kept_extracts_to_the_same_adapter(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, tmp_path: Path
) -> None:
    config = make_config(deep_base, "full", {"save_model": True, "extract": {"rank": 3}})
    directory = run(config, deep_base)
    model = directory.with_name(directory.name + ".model")
    extract_checkpoint(deep_base.stored, model, tmp_path / "again", Truncation(rank=3))
    trained, again = weights(directory), weights(tmp_path / "again")
    assert trained.keys() == again.keys()
    for name in trained:
        assert torch.equal(trained[name], again[name]), name
    shutil.rmtree(model)
    (model / "thesis").mkdir(parents=True)
    with pytest.raises(InvalidInputError, match="no model of ours"):
        run(config, deep_base)


@pytest.mark.parametrize("method", ["full", "galore"])
def test_a_resumed_run_ends_bit_for_bit_where_an_uninterrupted_one_does(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, method: str
) -> None:
    adapter: dict[str, Any] = {"extract": {"rank": 4}}
    if method == "galore":
        # Chosen anew at step 4, so that what was chosen at step 0 must come from the checkpoint.
        adapter |= {"rank": 4, "update_proj_gap": 4}
    config = make_config(deep_base, method, adapter, save_every=3, learning_rate=1e-3)
    whole = weights(run(config, deep_base))
    shutil.rmtree(config.output)
    shutil.rmtree(config.checkpoints / "checkpoint-6")
    again = weights(run(resumed(config), deep_base))
    assert whole.keys() == again.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, again[name]), name


def test_galore_takes_no_other_optimizer(deep_base: AddedBase, make_config: MakeConfig, run: Run) -> None:
    config = make_config(deep_base, "galore", {"rank": 16}, optimizer="sgd")
    with pytest.raises(InvalidInputError, match="galore has its own"):
        run(config, deep_base)
