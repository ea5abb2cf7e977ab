"""QA-LoRA against its formula in float64, and merged against unmerged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_models import AddedBase
from weft_adapters.int4 import Int4Linear
from weft_registry.errors import InvalidInputError
from weft_trainer.config.run import TrainConfig
from weft_trainer.evaluate import evaluate
from weft_trainer.methods.qalora import QaLoraLinear
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
    config = make_config(deep_base, "qalora", {"r": 4, "layers": "top:2"}, steps=12)
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
