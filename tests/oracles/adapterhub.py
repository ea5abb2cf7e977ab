"""Asks the AdapterHub library for the logits in adapterhub.safetensors: `make test-adapterhub`.

    python tests/oracles/adapterhub.py --compare      exits with 1 where the committed file says something else
    python tests/oracles/adapterhub.py --write        writes it

Runs in an environment of its own with `adapters`, whose transformers is another than Weft's, and without Weft.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from adapterhub_subjects import ADAPTERS, CASES, CONFIG, EXPECTED, SAVED, SHOWN, TOKENS, adapter_tensors, base_tensors
from adapterhub_subjects import fusion_tensors as fusion_numbers
from adapters.composition import Fuse, Stack
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import adapters
from adapters import BnConfig

MODULES = {"attention": "attention_adapters", "mlp": "output_adapters"}


def hub_model() -> Any:
    """The tiny Llama with every adapter and fusion in it, none active."""
    model: Any = LlamaForCausalLM(LlamaConfig(**CONFIG)).eval()
    state = {name: torch.from_numpy(values) for name, values in base_tensors().items()}
    load(model, state)
    adapters.init(model)
    for name, adapter in ADAPTERS.items():
        model.add_adapter(name, config=BnConfig(**adapter.config))
        load(model, {hub_name(key, name): torch.from_numpy(t) for key, t in adapter_tensors(name).items()})
    for name, case in CASES.items():
        if case.fusion:
            fused = Fuse(*case.adapters)
            model.add_adapter_fusion(fused, case.fusion)
            tensors = {f"{fused.name}|{key}": torch.from_numpy(t) for key, t in fusion_numbers(name).items()}
            load(model, {fusion_name(key): tensor for key, tensor in tensors.items()})
    return model.eval()


def hub_name(key: str, adapter: str) -> str:
    """The library's name of an adapter's tensor."""
    model, layers, layer, place, side, parameter = key.split(".")
    inner = "adapter_down.0" if side == "adapter_down" else side
    return f"{model}.{layers}.{layer}.{MODULES[place]}.adapters.{adapter}.{inner}.{parameter}"


def fusion_name(key: str) -> str:
    """The library's name of a fusion's tensor; `key` begins with the fusion's own name."""
    name, _, tensor = key.partition("|")
    model, layers, layer, place, side, parameter = tensor.split(".")
    return f"{model}.{layers}.{layer}.{MODULES[place]}.adapter_fusion_layer.{name}.{side}.{parameter}"


def load(model: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Sets parameters; every name must be one."""
    unknown = model.load_state_dict(tensors, strict=False).unexpected_keys
    if unknown:
        raise SystemExit(f"the model has no {unknown[:3]}")


@torch.no_grad()
def answers() -> dict[str, torch.Tensor]:
    """(tokens, SHOWN) of every case, and of the base alone."""
    model, ids = hub_model(), torch.tensor([TOKENS])
    model.set_active_adapters(None)
    found = {"base": model(input_ids=ids).logits[0, :, :SHOWN]}
    for name, case in CASES.items():
        setup = Fuse(*case.adapters) if case.fusion else Stack(*case.adapters)
        model.set_active_adapters(case.adapters[0] if len(case.adapters) == 1 else setup)
        found[name] = model(input_ids=ids).logits[0, :, :SHOWN]
    return {name: logits.contiguous() for name, logits in found.items()}


def directories() -> dict[str, Any]:
    """What the library saves for each adapter: its configuration, and the tensors' names in its weights."""
    model, found = hub_model(), {}
    for name in ADAPTERS:
        with TemporaryDirectory() as directory:
            model.save_adapter(directory, name, use_safetensors=True)
            config = json.loads((Path(directory) / "adapter_config.json").read_text())
            tensors = sorted(load_file(Path(directory) / "adapter.safetensors"))
            files = sorted(path.name for path in Path(directory).iterdir())
        found[name] = {"adapter_config.json": config, "tensors": tensors, "files": files}
    return found


def main() -> int:
    """Writes or compares."""
    parser = argparse.ArgumentParser()
    saved = json.dumps(directories(), indent=1, sort_keys=True) + "\n"
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--compare", action="store_true")
    options = parser.parse_args()
    found = answers()
    if options.write:
        save_file(found, EXPECTED)
        SAVED.write_text(saved)
    expected = load_file(EXPECTED)
    if found.keys() != expected.keys():
        print(f"different cases: {sorted(found.keys() ^ expected.keys())}")
        return 1
    if SAVED.read_text() != saved:
        print("the library saves adapters otherwise")
        return 1
    worst = {name: float((found[name] - expected[name]).abs().max()) for name in found}
    for name, difference in worst.items():
        print(f"{name:30} {difference:.2e}")
    return int(max(worst.values()) > 1e-4)


if __name__ == "__main__":
    sys.exit(main())
