"""LoRA over int4 against stock PEFT on the dequantized dense model."""

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
from weft_trainer.config.adapter import LoraOptions
from weft_trainer.config.run import TrainConfig
from weft_trainer.data.tokenization import BaseTokenizer
from weft_trainer.methods import METHODS
from weft_trainer.modeling.base import build

OPTIONS = LoraOptions(
    r=4, alpha=6.0, layers=(1, 2), rank_pattern={"q_proj": 2}, alpha_pattern={"model.layers.2.mlp.up_proj": 3.0}
)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dense", [False, True])
def test_loss_and_gradients_are_stock_pefts(deep_base: AddedBase, rslora: bool, dense: bool) -> None:
    options = LoraOptions(**{**vars(OPTIONS), "use_rslora": rslora})
    tokenizer = BaseTokenizer(deep_base.stored.tokenizer_dir)
    params = METHODS["lora"].params(options, deep_base.stored.spec, tokenizer)
    ours = METHODS["lora"].attach(build(deep_base.stored, torch.float32, dense=dense), params, options, tokenizer)
    theirs: Any = peft.get_peft_model(
        dense_model(deep_base),
        peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=4,
            lora_alpha=6,
            use_rslora=rslora,
            target_modules=list(params.target_modules),
            rank_pattern=dict(params.rank_pattern),
            alpha_pattern=dict(params.alpha_pattern),
        ),
    )
    generator = torch.Generator().manual_seed(0)
    tensors = {name: 0.1 * torch.randn(t.shape, generator=generator) for name, t in ours.export().items()}
    ours.restore(tensors)
    peft.set_peft_model_state_dict(theirs, tensors)

    assert_peft_gradients(ours, theirs, len(tensors))


def test_a_trained_adapter_loads_in_stock_peft_with_equal_logits(
    deep_base: AddedBase,
    make_config: Callable[..., TrainConfig],
    run: Callable[[TrainConfig, AddedBase], Path],
) -> None:
    adapter = {"r": 4, "layers": "top:2", "rank_pattern": {"q_proj": 2}}
    artifact = run(make_config(deep_base, "lora", adapter), deep_base)
    theirs = PeftModel.from_pretrained(dense_model(deep_base), str(artifact))
    method = METHODS["lora"]
    tokenizer = BaseTokenizer(deep_base.stored.tokenizer_dir)
    options = LoraOptions(r=4, layers="top:2", rank_pattern={"q_proj": 2})
    ours = method.bare(build(deep_base.stored, torch.float32), method.params(options, deep_base.stored.spec, tokenizer))
    tensors = load_file(str(artifact / "adapter_model.safetensors"))
    assert any(bool(t.any()) for n, t in tensors.items() if "lora_B" in n), "training must have moved B"
    ours.restore(tensors)
    with torch.no_grad():
        mask = BATCH["attention_mask"].bool()
        logits = ours.base.logits(ours.hidden(BATCH))[mask]
        torch.testing.assert_close(logits, theirs(**BATCH).logits[mask], atol=2e-5, rtol=1e-4)
