"""PEFT's PiSSA and OLoRA adapters, converted by PEFT to LoRA over the base as it was: what is imported computes the
same over the int4 base as PEFT computes over its dequantized weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from benchmarks.oracles import dense_model
from tests.tiny_models import AddedBase
from weft_registry import artifact, validation
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import InvalidInputError
from weft_registry.home import Home
from weft_registry.peft_format import import_directory
from weft_registry.reference import AdapterName
from weft_registry.transfer import push
from weft_trainer.methods.worn import wear

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
RANK = 4
CONFIGS: dict[str, dict[str, Any]] = {
    "pissa": {"init_lora_weights": "pissa", "target_modules": ["q_proj", "down_proj"]},
    "olora": {"init_lora_weights": "olora", "target_modules": "all-linear"},
    # PEFT doubles the rank, and the alpha only times the square root of two: it is no whole number then.
    "pissa with rsLoRA": {"init_lora_weights": "pissa", "target_modules": ["v_proj", "up_proj"], "use_rslora": True},
}


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits[0]
    return found


@pytest.mark.filterwarnings("ignore:.*changes the base weights:UserWarning")
@pytest.mark.parametrize("case", CONFIGS)
def test_a_converted_adapter_is_published_and_computes_what_peft_computes(
    case: str, tiny_base: Callable[..., AddedBase], tmp_path: Path
) -> None:
    base = tiny_base()
    spec = base.stored.spec
    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=8, **CONFIGS[case])
    model = get_peft_model(dense_model(base.stored), config)
    # As PEFT's guide says: the first values, saved as if they had never been a part of the base.
    kind = config.init_lora_weights
    config.init_lora_weights = True
    model.save_pretrained(tmp_path / "initial")
    config.init_lora_weights = kind
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    trained = logits(model.eval())

    model.save_pretrained(tmp_path / "unconverted")
    with pytest.raises(InvalidInputError, match="path_initial_model_for_weight_conversion"):
        import_directory(tmp_path / "unconverted", spec, tmp_path / "refused", name="x")
    model.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    theirs = logits(PeftModel.from_pretrained(dense_model(base.stored), str(tmp_path / "converted")).eval())
    torch.testing.assert_close(theirs, trained, atol=2e-3, rtol=2e-3)
    assert (theirs - logits(dense_model(base.stored))).abs().max() > 0.1

    made = import_directory(tmp_path / "converted", spec, tmp_path / "artifact", name="converted")
    manifest = validation.validate_directory(made, spec)
    assert (manifest.kind, manifest.adapter["r"]) == ("lora", 2 * RANK)
    home = Home(tmp_path / "home")
    home.root.mkdir()
    (home.root / "bases").symlink_to(base.home.bases)
    registry = EmbeddedRegistry(home)
    # The registry knows the base, so that it validates against it.
    assert push(registry, made, AdapterName("peft", "converted")).version.digest == artifact.read(made).digest()
    registry.close()

    worn = wear(base.stored, made, torch.float32, home)
    with torch.no_grad():
        states = worn.hidden({"input_ids": IDS, "attention_mask": torch.ones_like(IDS)})
        ours = worn.base.logits(states)[0]
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=2e-4)
