"""Prefix-tuning against stock PEFT on the dequantized dense model."""

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
from tests.trainer.oracles import BATCH, assert_encoder_gradients, dense_model
from weft_adapters.kinds.kind import MergeRefusedError
from weft_registry.errors import InvalidInputError
from weft_trainer.config.adapter import PrefixOptions
from weft_trainer.config.run import TrainConfig
from weft_trainer.data.tokenization import BaseTokenizer
from weft_trainer.evaluate import evaluate
from weft_trainer.progress import QuietReporter


def attach(base: AddedBase, options: PrefixOptions) -> Any:
    return oracles.attach(base, "prefix", options)


@pytest.mark.parametrize("projection", [False, True])
def test_loss_and_gradients_are_stock_pefts(deep_base: AddedBase, projection: bool) -> None:
    ours = attach(deep_base, PrefixOptions(num_virtual_tokens=3, prefix_projection=projection))
    spec = deep_base.stored.spec
    theirs: Any = peft.get_peft_model(
        dense_model(deep_base),
        peft.PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=3,
            prefix_projection=projection,
            encoder_hidden_size=spec.num_kv_heads * spec.head_dim,
        ),
    )
    assert_encoder_gradients(ours, theirs)


@pytest.mark.parametrize("arch", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_text_prefix_is_the_base_that_has_read_the_text(tiny_base: Callable[..., AddedBase], arch: str) -> None:
    base = tiny_base(arch)
    text = "The quick brown fox"
    ours = attach(base, PrefixOptions(init_text=text))
    words = torch.tensor([BaseTokenizer(base.stored.tokenizer_dir).completion(text)] * 2)
    with torch.no_grad():
        found = ours.hidden(BATCH)
        joined = {
            "input_ids": torch.cat([words, BATCH["input_ids"]], dim=1),
            "attention_mask": torch.cat([torch.ones_like(words), BATCH["attention_mask"]], dim=1),
        }
        wanted = ours.base.hidden(joined)[:, words.shape[1] :]
    mask = BATCH["attention_mask"].bool()
    torch.testing.assert_close(found[mask], wanted[mask], atol=1e-4, rtol=1e-4)


def test_the_length_follows_the_text_or_repeats_it(deep_base: AddedBase) -> None:
    tokenizer = BaseTokenizer(deep_base.stored.tokenizer_dir)
    count = len(tokenizer.completion("quick brown fox"))
    rows = attach(deep_base, PrefixOptions(init_text="quick brown fox", num_virtual_tokens=count + 2)).export()
    assert rows["prompt_embeddings"].shape[0] == count + 2
    with pytest.raises(InvalidInputError, match=f"has {count} tokens"):
        attach(deep_base, PrefixOptions(init_text="quick brown fox", num_virtual_tokens=1))


PREFIXES = [{"init_text": "user: classify"}, {"num_virtual_tokens": 4, "prefix_projection": True}]


@pytest.mark.parametrize("adapter", PREFIXES)
def test_a_trained_prefix_loads_in_stock_peft_with_equal_logits(
    deep_base: AddedBase, make_config: Callable[..., TrainConfig], run: Callable[..., Path], adapter: dict[str, object]
) -> None:
    config = make_config(deep_base, "prefix", adapter)
    artifact = run(config, deep_base)
    tensors = load_file(str(artifact / "adapter_model.safetensors"))
    length = tensors["prompt_embeddings"].shape[0]
    ours = attach(deep_base, PrefixOptions(num_virtual_tokens=length))
    ours.restore(tensors)
    theirs = PeftModel.from_pretrained(dense_model(deep_base), str(artifact))
    with torch.no_grad():
        mask = BATCH["attention_mask"].bool()
        logits = ours.base.logits(ours.hidden(BATCH))[mask]
        torch.testing.assert_close(logits, theirs(**BATCH).logits[mask], atol=2e-5, rtol=1e-4)
    with pytest.raises(MergeRefusedError):
        evaluate(artifact, config.data.train, QuietReporter(), merged=True, home=deep_base.home)
