"""QA-LoRA against its formula in float64, and merged against unmerged."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.engines import Runner
from benchmarks.subjects import random_adapter
from tests.engine_options import exact_options
from tests.tiny_models import AddedBase
from weft_adapters.int4 import Int4Linear, Int4Weight
from weft_registry.errors import InvalidInputError
from weft_registry.kinds.low_rank import PEFT_PREFIX
from weft_registry.kinds.qalora import QaLoraParams
from weft_server.torch_engine.engine import TorchEngine
from weft_trainer.config.adapter import LowRankOptions
from weft_trainer.config.run import TrainConfig
from weft_trainer.data.tokenization import BaseTokenizer
from weft_trainer.evaluate import evaluate
from weft_trainer.methods.qalora import QaLoraLinear, QaLoraMethod
from weft_trainer.methods.worn import bound, wear
from weft_trainer.progress import QuietReporter

MODULE = "model.layers.0.mlp.down_proj"


@pytest.fixture
def layer(deep_base: AddedBase) -> Any:
    torch.manual_seed(0)
    made = QaLoraLinear(Int4Linear(deep_base.stored.int4(MODULE)), 4, 32, scaling=1.5, dropout=0.0)
    torch.nn.init.normal_(made.lora_B.weight)
    return made


def test_value_and_gradients_are_the_formulas(deep_base: AddedBase, layer: Any) -> None:
    x = torch.randn(3, 5, layer.base_layer.in_features, requires_grad=True)
    y = layer(x)
    weight = deep_base.stored.int4(MODULE).dequantize().double()
    exact = x.detach().double().requires_grad_()
    a = layer.lora_A.weight.detach().double().requires_grad_()
    b = layer.lora_B.weight.detach().double().requires_grad_()
    wanted = exact @ weight.T
    for row in range(3):
        for position in range(5):
            pooled = torch.stack([exact[row, position, 32 * g : 32 * (g + 1)].sum() for g in range(a.shape[1])])
            wanted[row, position] += 1.5 * (b @ (a @ pooled))
    torch.testing.assert_close(y.double(), wanted, atol=1e-4, rtol=1e-5)
    y.square().sum().backward()
    wanted.square().sum().backward()
    pairs: list[tuple[Any, Any]] = [(x, exact), (layer.lora_A.weight, a), (layer.lora_B.weight, b)]
    for found, oracle in pairs:
        torch.testing.assert_close(found.grad.double(), oracle.grad, atol=1e-2, rtol=1e-4)


def test_the_first_forward_is_the_bases(deep_base: AddedBase) -> None:
    base = Int4Linear(deep_base.stored.int4(MODULE))
    x = torch.randn(7, base.in_features)
    assert torch.equal(QaLoraLinear(base, 4, 32, scaling=2.0, dropout=0.0)(x), base(x))


def test_a_starts_with_the_variance_that_lora_has(deep_base: AddedBase) -> None:
    torch.manual_seed(1)
    qalora: Any = QaLoraLinear(Int4Linear(deep_base.stored.int4(MODULE)), 512, 32, scaling=1.0, dropout=0.0)
    lora = torch.nn.Linear(qalora.base_layer.in_features, 512, bias=False)
    x = torch.randn(4096, qalora.base_layer.in_features)
    pooled = x.unflatten(-1, (-1, 32)).sum(-1)
    ratio = float(qalora.lora_A(pooled).std().detach() / lora(x).std().detach())
    assert ratio == pytest.approx(1.0, abs=0.1)


def test_merged_scores_what_unmerged_scores(
    deep_base: AddedBase, make_config: Callable[..., TrainConfig], run: Callable[..., Path]
) -> None:
    config = make_config(deep_base, "qalora", {"r": 2, "layers": "top:2"}, steps=12)
    artifact = run(config, deep_base)
    arguments = {"dtype": torch.float32, "home": deep_base.home}
    unmerged = evaluate(artifact, config.data.train, QuietReporter(), **arguments)
    merged = evaluate(artifact, config.data.train, QuietReporter(), merged=True, **arguments)
    base = evaluate(None, config.data.train, QuietReporter(), base=deep_base.name, **arguments)
    assert merged.exact_match == unmerged.exact_match
    assert merged.loss == pytest.approx(unmerged.loss, rel=1e-4)
    assert unmerged.loss < 0.8 * base.loss
    with pytest.raises(InvalidInputError, match="say which base"):
        evaluate(None, config.data.train, QuietReporter(), home=deep_base.home)


# Two groups of the widest kind at every linear.
WIDE = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 256}
GRIDS = [(4, 64), (4, 128), (3, 32), (3, 128), (2, 32), (2, 64)]


@pytest.mark.parametrize(("bits", "group_size"), GRIDS)
def test_bases_of_every_grid_are_trained_on_and_merged_into(
    bits: int,
    group_size: int,
    tiny_base: Callable[..., AddedBase],
    make_config: Callable[..., TrainConfig],
    run: Callable[..., Path],
    task_file: Path,
) -> None:
    base = tiny_base(bits=bits, group_size=group_size, **WIDE)
    stored = base.stored
    config = make_config(base, "qalora", {"r": 2, "alpha": 3.0, "layers": "top:1"}, steps=12, learning_rate=3e-2)
    adapter, _ = bound(run(config, base), stored, base.home)
    assert isinstance(adapter.params, QaLoraParams)
    assert adapter.params.group_size == stored.spec.fingerprint.quant.group_size == group_size
    unmerged: Any = wear(stored, config.output, torch.float32, base.home)
    for module in adapter.params.target_modules:
        weight = stored.int4(module)
        a, b = (adapter.tensors[f"{PEFT_PREFIX}{module}.lora_{side}.weight"].double() for side in "AB")
        assert a.shape == (2, stored.spec.linears[module][1] // group_size)
        assert b.any()
        x = torch.randn(5, stored.spec.linears[module][1])
        pooled = x.double().unflatten(-1, (-1, group_size)).sum(-1)
        wanted = x.double() @ weight.dequantize().double().T + 1.5 * pooled @ a.T @ b.T
        found = unmerged.base.model.get_submodule(module)(x)
        torch.testing.assert_close(found.double(), wanted, atol=1e-4, rtol=1e-5)
        merged = adapter.kind.overlay(module, weight, adapter)
        assert isinstance(merged, Int4Weight)
        assert merged.codes_NH is weight.codes_NH
        assert int(merged.codes().max()) == 2**bits - 1
        assert merged.scale_NG is weight.scale_NG
        minima = weight.minimum_NG.double() + 1.5 * b @ a
        torch.testing.assert_close(merged.minimum_NG.double(), minima, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(Int4Linear(merged)(x), found, atol=1e-4, rtol=1e-5)

    tokenizer = BaseTokenizer(stored.tokenizer_dir)
    rows = [json.loads(line) for line in task_file.read_text().splitlines()[:4]]
    prompts = [tokenizer.completion(row["prompt"]) for row in rows]
    with closing(TorchEngine(stored, exact_options())) as engine:
        runner = Runner(engine)
        unworn = runner.run(prompts, [None] * 4, 4)
        worn = runner.run(prompts, [adapter] * 4, 4)
        assert worn != unworn
        engine.merge(adapter)
        assert runner.run(prompts, [adapter] * 4, 4) == worn
        assert runner.run(prompts, [None] * 4, 4) == unworn


def test_a_rank_over_the_groups_of_a_module_is_refused_with_their_size(tiny_base: Callable[..., AddedBase]) -> None:
    base = tiny_base(group_size=64, **WIDE)
    tokenizer = BaseTokenizer(base.stored.tokenizer_dir)
    assert QaLoraMethod().params(LowRankOptions(r=4), base.stored.spec, tokenizer).r == 4
    says = r"^adapter\.r: rank 5, but model\.layers\.0\S* has .* 256 inputs in 4 groups of 64, .* at most 4 ranks there"
    with pytest.raises(InvalidInputError, match=says):
        QaLoraMethod().params(LowRankOptions(r=5), base.stored.spec, tokenizer)
    ranks = {"q_proj": 2, "model.layers.1.self_attn.q_proj": 9}
    says = r"^adapter\.rank_pattern\.model\.layers\.1\.self_attn\.q_proj: rank 9"
    with pytest.raises(InvalidInputError, match=says):
        QaLoraMethod().params(LowRankOptions(r=4, rank_pattern=ranks), base.stored.spec, tokenizer)


def test_an_adapter_over_that_rank_is_worn_and_trained_on(
    deep_base: AddedBase, make_config: Callable[..., TrainConfig], run: Callable[..., Path], tmp_path: Path
) -> None:
    """There are such ones: they were trained before the bound."""
    made = tmp_path / "made"
    random_adapter("qalora", deep_base.stored.spec, 1, rank=8).write(made, deep_base.stored.spec, "acme/made")
    assert wear(deep_base.stored, made, torch.float32, deep_base.home)
    config = replace(make_config(deep_base, "qalora", {"r": 2}, steps=1), adapter=None, start=str(made))
    adapter, _ = bound(run(config, deep_base), deep_base.stored, deep_base.home)
    assert adapter.params.r == 8
