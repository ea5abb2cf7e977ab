"""Adapters made by stock PEFT, published as they are and served: greedy tokens as PEFT's own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model

from benchmarks.oracles import dense_model
from tests.server.processes import start
from tests.tiny_models import AddedBase
from weft_client import InferenceClient
from weft_registry.home import Home

CONFIGS: dict[str, Any] = {
    "lora": lambda: LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=["q_proj", "down_proj"]),
    "patterned": lambda: LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        use_rslora=True,
        target_modules="all-linear",
        rank_pattern={"v_proj": 2},
        alpha_pattern={r"layers\.0\.mlp\.up_proj": 32},
    ),
    "dora": lambda: LoraConfig(task_type="CAUSAL_LM", r=4, use_dora=True, target_modules=["q_proj", "down_proj"]),
    "ia3": lambda: IA3Config(task_type="CAUSAL_LM"),
    "untyped": lambda: LoraConfig(r=4, target_modules=["o_proj"]),
    "prefix": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "prompt": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "p-tuning": lambda: PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=5,
        encoder_reparameterization_type="LSTM",
        encoder_hidden_size=32,
    ),
}
PROMPT = [3, 1, 4, 1, 5, 9]


def test_stock_peft_adapters_serve_as_peft_computes_them(tiny_base: Callable[..., AddedBase], tmp_path: Path) -> None:
    base, home = tiny_base(), Home(tmp_path / "home")
    shutil.copytree(base.home.bases / base.name, home.bases / base.name)
    environment = {**os.environ, "WEFT_HOME": str(home.root)}
    expected = {}
    for seed, (name, config) in enumerate(CONFIGS.items()):
        torch.manual_seed(seed)
        model = get_peft_model(dense_model(base.stored), config())
        for tensor in (t for t in model.parameters() if t.requires_grad):
            torch.nn.init.normal_(tensor, std=0.5 if name in ("prefix", "prompt") else 0.2)
            if name == "ia3":
                tensor.data += 1
        model.eval().save_pretrained(tmp_path / name)
        ids = torch.tensor([PROMPT])
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=12,
                min_new_tokens=12,
                do_sample=False,
                pad_token_id=0,
            )
        expected[name] = out[0, -12:].tolist()
        command = [sys.executable, "-m", "weft_client.cli", "push", str(tmp_path / name), f"peft/{name}"]
        subprocess.run([*command, "--base", base.name], env=environment, check=True, capture_output=True)
    process, address = start(home, base.name, "--dtype", "float32")
    try:
        with InferenceClient(address, timeout_s=60) as client:
            found = {
                name: list(
                    client.generate(
                        token_ids=PROMPT, adapter=f"peft/{name}", max_new_tokens=12, min_new_tokens=12
                    ).token_ids
                )
                for name in CONFIGS
            }
    finally:
        process.terminate()
        assert process.wait(30) == 0
    assert found == expected


@pytest.mark.parametrize("change", ["lora_bias"])
def test_what_stock_peft_can_do_and_weft_cannot_is_refused_by_name_and_not_stored(
    change: str, tiny_base: Callable[..., AddedBase], tmp_path: Path
) -> None:
    base, home = tiny_base(), Home(tmp_path / "home")
    shutil.copytree(base.home.bases / base.name, home.bases / base.name)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], **{change: True})
    get_peft_model(dense_model(base.stored), config).save_pretrained(tmp_path / "made")
    environment = {**os.environ, "WEFT_HOME": str(home.root)}
    cli = [sys.executable, "-m", "weft_client.cli"]
    push = [*cli, "push", str(tmp_path / "made"), "peft/made", "--base", base.name]
    done = subprocess.run(push, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert change in done.stderr
    listed = subprocess.run([*cli, "list", "--json"], env=environment, capture_output=True, text=True, check=True)
    assert "peft/made" not in listed.stdout
