from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_models import AddedBase
from weft_registry import artifact as artifacts
from weft_trainer.config.adapter import LoraOptions
from weft_trainer.config.run import TrainConfig
from weft_trainer.data.batches import TokenBatches
from weft_trainer.data.dataset import Example
from weft_trainer.data.tokenization import BaseTokenizer
from weft_trainer.methods import METHODS
from weft_trainer.modeling.base import build
from weft_trainer.modeling.recompute import recompute_layers

ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "dropout": 0.3},
    "qalora": {"r": 2, "dropout": 0.3, "layers": "top:2"},
    "prefix": {"num_virtual_tokens": 4},
}


@pytest.mark.parametrize("method", ADAPTERS)
def test_gradient_checkpointing_trains_the_same_bits(
    deep_base: AddedBase,
    make_config: Callable[..., TrainConfig],
    run: Callable[[TrainConfig, AddedBase], Path],
    method: str,
) -> None:
    kept = artifacts.read(run(make_config(deep_base, method, ADAPTERS[method]), deep_base))
    config = make_config(deep_base, method, ADAPTERS[method], gradient_checkpointing=True)
    again = artifacts.read(run(config, deep_base))
    assert again.tensors == kept.tensors
    assert [m.value for m in again.metrics] == [m.value for m in kept.metrics]


def test_gradient_checkpointing_keeps_less_for_the_backward_pass(deep_base: AddedBase) -> None:
    stored = deep_base.stored
    tokenizer = BaseTokenizer(stored.tokenizer_dir, stored.config.eos_token_ids)
    method, options = METHODS["lora"], LoraOptions(r=4)

    def kept_bytes(recompute: bool) -> int:
        base = build(stored, torch.float32)
        model = method.attach(base, method.params(options, stored.spec, tokenizer), options, tokenizer)
        if recompute:
            recompute_layers(base)
        model.train()
        batch = TokenBatches([Example(tuple(range(3, 67)), 8)] * 4, tokenizer.pad)(range(4))
        frozen = {parameter.data_ptr() for parameter in model.parameters()}
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.data_ptr() not in frozen:
                kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(**batch)["loss"]
        return sum(kept.values())

    assert kept_bytes(recompute=True) < 0.5 * kept_bytes(recompute=False)
