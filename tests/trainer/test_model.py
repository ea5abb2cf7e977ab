from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.tiny_models import AddedBase
from tests.trainer.oracles import BATCH, dense_model
from weft_adapters.int4 import Int4Linear
from weft_trainer.modeling.base import build, layer_of, shift_layer


@pytest.mark.parametrize("arch", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("dense", [False, True])
def test_logits_are_transformers_on_the_dequantized_weights(
    tiny_base: Callable[..., AddedBase], arch: str, dense: bool
) -> None:
    added = tiny_base(arch)
    base = build(added.stored, torch.float32, dense=dense)
    with torch.no_grad():
        logits = base.logits(base.hidden(BATCH))
        wanted = dense_model(added)(**BATCH).logits
    real = BATCH["attention_mask"].bool()
    torch.testing.assert_close(logits[real], wanted[real], atol=2e-5, rtol=1e-4)


def test_two_halves_make_the_whole(deep_base: AddedBase) -> None:
    whole = build(deep_base.stored, torch.float32)
    lower = build(deep_base.stored, torch.float32, layers=range(3))
    lower.model.model.norm = nn.Identity()
    upper = build(deep_base.stored, torch.float32, layers=range(3, 4))
    with torch.no_grad():
        states = upper.hidden({"inputs_embeds": lower.hidden(BATCH), "attention_mask": BATCH["attention_mask"]})
        torch.testing.assert_close(states, whole.hidden(BATCH))
    assert upper.local("model.layers.3.mlp.up_proj") == "model.layers.0.mlp.up_proj"


def test_the_base_is_frozen_and_its_linears_stay_int4(deep_base: AddedBase) -> None:
    base = build(deep_base.stored, torch.bfloat16)
    assert not [p for p in base.model.parameters() if p.requires_grad]
    linears = [m for name, m in base.model.named_modules() if name in deep_base.stored.spec.linears]
    assert all(type(m) is Int4Linear and m.scale.dtype == torch.float16 for m in linears)
    assert len(linears) == len(deep_base.stored.spec.linears)


def test_an_overlay_takes_the_place_of_a_linear(deep_base: AddedBase) -> None:
    name = "model.layers.1.self_attn.v_proj"
    zero = torch.zeros(deep_base.stored.spec.linears[name])
    base = build(deep_base.stored, torch.float32, overlays={name: zero})
    assert torch.equal(base.model.get_submodule(name).weight, zero)
    assert isinstance(base.model.get_submodule("model.layers.0.self_attn.v_proj"), Int4Linear)


def test_layer_numbers_in_names() -> None:
    assert layer_of("base_model.model.model.layers.12.mlp.up_proj.lora_A.weight") == 12
    assert layer_of("model.norm.weight") is None
    assert shift_layer("model.layers.2.x.weight", 10) == "model.layers.12.x.weight"
