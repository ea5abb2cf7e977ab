"""A fixed batch, and transformers' and PEFT's own models to compare with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.tiny_models import AddedBase
from weft_adapters.base.dense import dequantized_state_dict
from weft_trainer.data.tokenization import BaseTokenizer
from weft_trainer.methods import METHODS
from weft_trainer.modeling.base import build

IDS = torch.tensor([[5, 9, 200, 31, 77, 8], [4, 4, 60, 2, 2, 2]])
BATCH = {"input_ids": IDS, "attention_mask": torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]])}
LABELS = torch.tensor([[-100, -100, -100, 31, 77, 8], [-100, -100, 60, -100, -100, -100]])
"""The completions: three tokens, and one."""


def dense_model(base: AddedBase) -> Any:
    """transformers' own model on the dequantized weights: the oracle."""
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base.stored.path), dtype=torch.float32)
    model.load_state_dict(dequantized_state_dict(base.stored))
    return model.eval()


def attach(base: AddedBase, method: str, options: Any, dtype: torch.dtype = torch.float32) -> Any:
    """Our model, freshly initialized from seed 0."""
    torch.manual_seed(0)
    made, tokenizer = METHODS[method], BaseTokenizer(base.stored.tokenizer_dir)
    params = made.params(options, base.stored.spec, tokenizer)
    return made.attach(build(base.stored, dtype), params, options, tokenizer)


def backward_as_peft(ours: Any, theirs: Any, **tolerance: float) -> None:
    """Both losses on the batch, compared; then both gradients. Padding is on the right, and PEFT leaves virtual
    positions out of its loss, so that its loss over the same labels is over the same four tokens."""
    loss = ours(**BATCH, labels=LABELS)["loss"]
    wanted = theirs(**BATCH, labels=LABELS).loss
    torch.testing.assert_close(loss, wanted, **tolerance)
    loss.backward()
    wanted.backward()


def assert_peft_gradients(ours: Any, theirs: Any, count: int, own: Callable[[str], str] = str) -> None:
    """All `count` gradients of PEFT's model are ours; `own` makes of PEFT's parameter name how ours ends."""
    backward_as_peft(ours, theirs)
    found = gradients(ours)
    oracle = gradients(theirs)
    assert len(found) == len(oracle) == count
    for name, grad in oracle.items():
        (match,) = [n for n in found if n.endswith(own(name))]
        torch.testing.assert_close(found[match], grad, atol=1e-6, rtol=1e-3)


def assert_encoder_gradients(ours: Any, theirs: Any) -> None:
    """PEFT's prompt encoder, given our values, has our loss and our gradients."""
    theirs.prompt_encoder["default"].load_state_dict(ours.encoder.state_dict())
    backward_as_peft(ours, theirs)
    oracle = gradients(theirs.prompt_encoder["default"])
    found = gradients(ours.encoder)
    assert found.keys() == oracle.keys() != set()
    for name, grad in found.items():
        assert grad is not None
        torch.testing.assert_close(grad, oracle[name], atol=1e-6, rtol=1e-3)


def gradients(model: Any) -> Mapping[str, Any]:
    """Those of all trainable parameters."""
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
