"""P-tuning v2 against stock PEFT's prefix without projection, on the dequantized dense model."""

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
from tests.trainer import oracles
from tests.trainer.oracles import BATCH, LABELS, assert_encoder_gradients, dense_model
from weft_registry import artifact as artifacts
from weft_trainer.config.adapter import PTuningV2Options
from weft_trainer.config.run import TrainConfig
from weft_trainer.data.tokenization import BaseTokenizer
from weft_trainer.evaluate import evaluate
from weft_trainer.methods import METHODS, method_of_kind
from weft_trainer.modeling.base import build
from weft_trainer.progress import QuietReporter

TENSOR = "prompt_embeddings"


def attach(base: AddedBase, options: PTuningV2Options) -> Any:
    return oracles.attach(base, "p_tuning_v2", options)


def test_loss_and_gradients_are_stock_pefts(deep_base: AddedBase) -> None:
    ours = attach(deep_base, PTuningV2Options(num_virtual_tokens=3))
    theirs: Any = peft.get_peft_model(
        dense_model(deep_base), peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    assert_encoder_gradients(ours, theirs)


def test_every_layer_has_a_prompt_and_nothing_else_is_trained(deep_base: AddedBase) -> None:
    spec = deep_base.stored.spec
    model = attach(deep_base, PTuningV2Options(num_virtual_tokens=3))
    width = spec.num_layers * 2 * spec.num_kv_heads * spec.head_dim
    assert [tuple(p.shape) for p in model.trainable().values()] == [(3, width)]


def test_the_start_has_the_scale_that_was_asked_for(deep_base: AddedBase) -> None:
    rows = attach(deep_base, PTuningV2Options(num_virtual_tokens=50, init_scale=0.25)).export()[TENSOR]
    assert float(rows.std()) == pytest.approx(0.25, rel=0.1)


def test_dropout_acts_in_training_and_not_in_what_is_exported(deep_base: AddedBase) -> None:
    model = attach(deep_base, PTuningV2Options(num_virtual_tokens=5, dropout=0.5))
    losses = [float(model.train()(**BATCH, labels=LABELS)["loss"].detach()) for _ in range(2)]
    assert losses[0] != losses[1]
    weight = model.encoder.embedding.weight
    assert torch.equal(model.export()[TENSOR], weight.detach())
    losses = [float(model.eval()(**BATCH, labels=LABELS)["loss"].detach()) for _ in range(2)]
    assert losses[0] == losses[1]


def test_a_trained_one_is_a_prefix_that_stock_peft_loads_with_equal_logits(
    deep_base: AddedBase, make_config: Callable[..., TrainConfig], run: Callable[..., Path]
) -> None:
    config = make_config(deep_base, "p_tuning_v2", {"num_virtual_tokens": 6}, steps=60, learning_rate=0.1)
    artifact = run(config, deep_base)
    assert artifacts.read(artifact).kind == "prefix"
    ours: Any = METHODS["p_tuning_v2"].bare(
        build(deep_base.stored, torch.float32),
        METHODS["p_tuning_v2"].params(
            PTuningV2Options(num_virtual_tokens=6),
            deep_base.stored.spec,
            BaseTokenizer(deep_base.stored.tokenizer_dir),
        ),
    )
    ours.restore(load_file(str(artifact / "adapter_model.safetensors")))
    theirs = PeftModel.from_pretrained(dense_model(deep_base), str(artifact))
    mask = BATCH["attention_mask"].bool()
    with torch.no_grad():
        logits = ours.base.logits(ours.hidden(BATCH))[mask]
        torch.testing.assert_close(logits, theirs(**BATCH).logits[mask], atol=2e-5, rtol=1e-4)
    found = evaluate(artifact, config.data.train, QuietReporter(), home=deep_base.home, dtype=torch.float32)
    base = evaluate(
        None, config.data.train, QuietReporter(), base=deep_base.name, home=deep_base.home, dtype=torch.float32
    )
    assert found.loss < 0.5 * base.loss


def test_the_method_of_the_kind_stays_prefix_tuning() -> None:
    assert method_of_kind("prefix").name == "prefix"
    assert method_of_kind("prompt").name == "prompt_tuning"
