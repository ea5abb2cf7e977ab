"""DoRA over int4 against stock PEFT on the dequantized dense model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from tests.tiny_models import AddedBase
from tests.trainer.oracles import BATCH, assert_peft_gradients, dense_model
from weft_adapters.int4 import Int4Linear
from weft_trainer.config.adapter import LoraOptions
from weft_trainer.config.run import TrainConfig
from weft_trainer.data.tokenization import BaseTokenizer
from weft_trainer.evaluate import evaluate
from weft_trainer.methods import METHODS
from weft_trainer.methods.dora import DoraLinear
from weft_trainer.modeling.base import build
from weft_trainer.progress import QuietReporter

OPTIONS = LoraOptions(r=4, alpha=6.0, layers=(1,), rank_pattern={"q_proj": 2}, alpha_pattern={"up_proj": 3.0})
MAGNITUDE = "lora_magnitude_vector"


def random_values(model: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in model.export().items()
    }


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
@pytest.mark.parametrize("dense", [False, True])
def test_loss_and_gradients_are_stock_pefts(arch: str, dense: bool, tiny_base: Callable[..., AddedBase]) -> None:
    base = tiny_base(arch)
    method, tokenizer = METHODS["dora"], BaseTokenizer(base.stored.tokenizer_dir)
    params = method.params(OPTIONS, base.stored.spec, tokenizer)
    ours = method.attach(build(base.stored, torch.float32, dense=dense), params, OPTIONS, tokenizer)
    theirs: Any = peft.get_peft_model(
        dense_model(base),
        peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=4,
            lora_alpha=6,
            use_dora=True,
            target_modules=list(params.target_modules),
            rank_pattern=dict(params.rank_pattern),
            alpha_pattern=dict(params.alpha_pattern),
        ),
    )
    tensors = random_values(ours)
    ours.restore(tensors)
    loaded: Any = peft.set_peft_model_state_dict(theirs, tensors)
    assert not loaded.unexpected_keys

    def own(name: str) -> str:
        # PEFT keeps A, B and the magnitude in modules by adapter.
        name = name.removeprefix("base_model.model.").replace(".default", "")
        return name.removesuffix(".weight") if MAGNITUDE in name else name

    assert_peft_gradients(ours, theirs, len(tensors), own)


def test_dropout_acts_where_stock_pefts_does(deep_base: AddedBase) -> None:
    module = "model.layers.0.mlp.down_proj"
    weight = deep_base.stored.int4(module).dequantize()
    dense = torch.nn.Linear(weight.shape[1], weight.shape[0])
    dense.weight.data = weight
    config = peft.LoraConfig(r=4, lora_alpha=6, lora_dropout=0.5, use_dora=True, target_modules=["x"])
    theirs: Any = peft.tuners.lora.Linear(dense, "default", config, r=4, lora_alpha=6)
    bias = dense.bias.detach().clone()
    square = weight.norm(dim=1).square()
    ours = DoraLinear(Int4Linear(deep_base.stored.int4(module), bias), square, 4, scaling=1.5, dropout=0.5)
    torch.testing.assert_close(ours.lora_magnitude_vector, theirs.lora_magnitude_vector["default"].weight)
    with torch.no_grad():
        for own, other in (
            (ours.lora_A.weight, theirs.lora_A["default"].weight),
            (ours.lora_B.weight, theirs.lora_B["default"].weight),
            (ours.lora_magnitude_vector, theirs.lora_magnitude_vector["default"].weight),
        ):
            other.copy_(own.normal_())
    x = torch.randn(3, 5, weight.shape[1])
    answers = []
    for layer in (ours, theirs):
        torch.manual_seed(3)
        answers.append(layer.train()(x))
    torch.testing.assert_close(answers[0], answers[1], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(ours.eval()(x), answers[0], atol=1e-2)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), atol=1e-4, rtol=1e-4)


def test_training_starts_at_the_base_with_the_norms_of_its_weights(deep_base: AddedBase) -> None:
    method, tokenizer = METHODS["dora"], BaseTokenizer(deep_base.stored.tokenizer_dir)
    params = method.params(OPTIONS, deep_base.stored.spec, tokenizer)
    plain = build(deep_base.stored, torch.float32)
    wanted = plain.hidden(BATCH)
    model = method.attach(plain, params, OPTIONS, tokenizer)
    assert torch.equal(model.hidden(BATCH), wanted)
    for name, tensor in model.export().items():
        if name.endswith(MAGNITUDE):
            module = name.removeprefix("base_model.model.").removesuffix(f".{MAGNITUDE}")
            norm = deep_base.stored.int4(module).dequantize(torch.float64).norm(dim=1)
            torch.testing.assert_close(tensor.double(), norm, rtol=1e-6, atol=0)


def test_a_trained_adapter_is_stock_pefts_and_merges_to_the_same_scores(
    deep_base: AddedBase, make_config: Callable[..., TrainConfig], run: Callable[[TrainConfig, AddedBase], Path]
) -> None:
    config = make_config(deep_base, "dora", {"r": 4, "layers": "top:2", "rank_pattern": {"q_proj": 2}})
    artifact = run(config, deep_base)
    options = LoraOptions(r=4, layers="top:2", rank_pattern={"q_proj": 2})
    method, tokenizer = METHODS["dora"], BaseTokenizer(deep_base.stored.tokenizer_dir)
    ours = method.bare(build(deep_base.stored, torch.float32), method.params(options, deep_base.stored.spec, tokenizer))
    tensors = load_file(str(artifact / "adapter_model.safetensors"))
    ours.restore(tensors)
    moved = [
        (tensor - deep_base.stored.int4(name[17 : -len(MAGNITUDE) - 1]).dequantize().norm(dim=1)).abs().max()
        for name, tensor in tensors.items()
        if name.endswith(MAGNITUDE)
    ]
    assert min(moved) > 1e-4, "training must have moved every magnitude"
    theirs = PeftModel.from_pretrained(dense_model(deep_base), str(artifact))
    with torch.no_grad():
        mask = BATCH["attention_mask"].bool()
        logits = ours.base.logits(ours.hidden(BATCH))[mask]
        torch.testing.assert_close(logits, theirs(**BATCH).logits[mask], atol=2e-5, rtol=1e-4)

    arguments: dict[str, Any] = {"dtype": torch.float32, "home": deep_base.home}
    unmerged = evaluate(artifact, config.data.train, QuietReporter(), **arguments)
    merged = evaluate(artifact, config.data.train, QuietReporter(), merged=True, **arguments)
    base = evaluate(None, config.data.train, QuietReporter(), base=deep_base.name, **arguments)
    assert merged.loss == pytest.approx(unmerged.loss, rel=1e-4)
    assert unmerged.loss < 0.9 * base.loss
