"""QLoRA over an NF4 base, beside transformers and PEFT as their users load it. bitsandbytes computes NF4 on a CPU too.

`make test-bitsandbytes` installs bitsandbytes and runs these.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests.tiny_models import AddedBase
from tests.trainer.oracles import BATCH, LABELS, assert_peft_gradients, dense_model
from weft_adapters.int4 import Int4Linear
from weft_registry import artifact
from weft_trainer.config.adapter import QLoraOptions
from weft_trainer.config.run import TrainConfig
from weft_trainer.data.tokenization import BaseTokenizer
from weft_trainer.methods import METHODS
from weft_trainer.modeling.base import build

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: see `make test-bitsandbytes`")


def quantized_by_transformers(base: AddedBase, directory: Path) -> Any:
    """The dequantized weights, read back in NF4 with double quantization."""
    dense_model(base).save_pretrained(directory)
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    return AutoModelForCausalLM.from_pretrained(
        directory, quantization_config=config, dtype=torch.float32, device_map="cpu"
    ).eval()


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_loss_and_gradients_are_those_of_peft_over_transformers_own_nf4(
    tiny_base: Callable[..., AddedBase], arch: str, tmp_path: Path
) -> None:
    base = tiny_base(arch)
    tokenizer, options = BaseTokenizer(base.stored.tokenizer_dir), QLoraOptions(r=4, quantization="nf4")
    method = METHODS["qlora"]
    params = method.params(options, base.stored.spec, tokenizer)
    ours: Any = method.attach(build(base.stored, torch.float32), params, options, tokenizer)
    layers = [module for module in ours.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert len(layers) == len(base.stored.spec.linears)
    assert not any(isinstance(module, Int4Linear) for module in ours.modules())
    lora = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=params.alpha, target_modules=list(params.target_modules)
    )
    theirs: Any = peft.get_peft_model(quantized_by_transformers(base, tmp_path / "dense"), lora).train()
    generator = torch.Generator().manual_seed(0)
    tensors = {name: 0.1 * torch.randn(t.shape, generator=generator) for name, t in ours.export().items()}
    ours.restore(tensors)
    peft.set_peft_model_state_dict(theirs, tensors)
    # A run is evaluated in the middle, which must leave no trace.
    with torch.no_grad():
        ours.eval()(**BATCH, labels=LABELS)
    ours.train()
    assert_peft_gradients(ours, theirs, len(tensors))
    # And it is another rounding than the base's own.
    exact: Any = METHODS["lora"].attach(build(base.stored, torch.float32), params, options, tokenizer)
    exact.restore(tensors)
    assert not torch.allclose(exact(**BATCH, labels=LABELS)["loss"], ours(**BATCH, labels=LABELS)["loss"], rtol=1e-4)


def test_a_run_over_nf4_learns_the_task_and_leaves_a_lora(
    tiny_base: Callable[..., AddedBase],
    make_config: Callable[..., TrainConfig],
    run: Callable[[TrainConfig, AddedBase], Path],
) -> None:
    base = tiny_base()
    losses = []
    for steps in (1, 30):
        config = make_config(base, "qlora", {"r": 4, "quantization": "nf4"}, steps=steps)
        manifest = artifact.read(run(config, base))
        assert manifest.kind == "lora"
        losses += [
            float(metric.value) for metric in manifest.metrics if (metric.name, metric.split) == ("loss", "eval")
        ]
    before, after = losses
    assert after < before / 4
    tensors = load_file(config.output / "adapter_model.safetensors")
    assert all(bool(tensor.any()) for name, tensor in tensors.items() if "lora_B" in name)
