"""Stock PEFT and transformers load adapters from the registry by name, with nothing set but HF_ENDPOINT."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.registry.hub_lab import run_client
from weft_registry import transfer
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.hub.port import HubPort
from weft_registry.reference import AdapterName

NewArtifact = Callable[..., Path]
NAME = AdapterName("acme", "topics")
# The dimensions are those of `tests.registry.lab.BASE`.
MODEL = """
import sys
import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=64, max_position_embeddings=128,
    )).eval()

@torch.no_grad()
def logits(adapted):
    return adapted(torch.arange(12)[None]).logits

plain = logits(model())
"""
LOADS = (
    MODEL
    + """
for name, directory in zip(sys.argv[1::2], sys.argv[2::2]):
    here = logits(PeftModel.from_pretrained(model(), directory))
    there = logits(PeftModel.from_pretrained(model(), name, revision="v1"))
    assert torch.equal(here, there), name
    assert (here - plain).abs().max() > 1e-3, name
    print(name)
directory = sys.argv[2]
adapted = model()
adapted.load_adapter("acme/lora", adapter_kwargs={"revision": "v1"})
torch.testing.assert_close(logits(adapted), logits(PeftModel.from_pretrained(model(), directory)))
print("load_adapter")
"""
)
MOVES = """
import sys
from pathlib import Path
import safetensors.torch
from peft import PeftConfig
from peft.utils import load_peft_weights
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.reference import AdapterName

home, *directories = sys.argv[1:]
registry = EmbeddedRegistry(Home(Path(home)))
name = AdapterName("acme", "topics")

def holds(weights, directory):
    published = safetensors.torch.load_file(Path(directory) / "adapter_model.safetensors")
    return weights.keys() == published.keys() and all(weights[key].equal(published[key]) for key in published)

for directory, after in zip(directories, ("v2", "v1")):
    PeftConfig.from_pretrained("acme/topics", revision="production")
    registry.set_alias(name, "production", after)
    assert holds(load_peft_weights("acme/topics", device="cpu", revision="production"), directory), after
registry.close()
print("whole")
"""


@pytest.fixture
def port(registry: EmbeddedRegistry) -> Iterator[HubPort]:
    port = HubPort(registry, "127.0.0.1", 0, grace_s=0)
    yield port
    port.close()


def test_an_adapter_by_name_computes_what_its_directory_computes(
    registry: EmbeddedRegistry, port: HubPort, new_artifact: NewArtifact, tmp_path: Path
) -> None:
    arguments: list[str] = []
    for kind in ("lora", "prefix", "ia3"):
        directory = new_artifact(kind=kind)
        transfer.push(registry, directory, AdapterName("acme", kind), tags=["v1"])
        arguments += [f"acme/{kind}", str(directory)]
    said = run_client(LOADS, *arguments, address=port.address, home=tmp_path / "hf")
    assert said.split() == ["acme/lora", "acme/prefix", "acme/ia3", "load_adapter"]


def test_an_alias_that_moves_between_configuration_and_weights_mixes_nothing(
    registry: EmbeddedRegistry, home: Home, port: HubPort, new_artifact: NewArtifact, tmp_path: Path
) -> None:
    """PEFT asks for the two by the alias each time, one after the other."""
    directories = [new_artifact(seed=seed) for seed in (1, 2)]
    for tag, directory in zip(("v1", "v2"), directories, strict=True):
        transfer.push(registry, directory, NAME, tags=[tag])
    registry.set_alias(NAME, "production", "v1")
    arguments = [str(home.root), *map(str, directories)]
    assert run_client(MOVES, *arguments, address=port.address, home=tmp_path / "hf") == "whole\n"
