"""The model that AdapterHub was asked about, as a base of Weft's, and its adapters as Weft's."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.subjects import RandomAdapter
from tests.oracles.adapterhub_subjects import (
    ADAPTERS,
    CASES,
    CONFIG,
    EXPECTED,
    Array,
    adapter_tensors,
    base_tensors,
    fusion_tensors,
)
from tests.tiny_models import AddedBase, make_model_directory
from weft_adapters.base import StoredBase, add_base
from weft_registry.home import Home
from weft_registry.kinds.bottleneck import BottleneckParams
from weft_registry.kinds.fusion import FusionParams
from weft_registry.reference import AdapterName, Reference


def expected(case: str) -> Tensor:
    """AdapterHub's logits: (tokens, the first few of the vocabulary)."""
    return load_file(EXPECTED)[case]


def add_hub_base(directory: Path) -> AddedBase:
    """Adds the model to a WEFT_HOME in `directory`."""
    source, home = directory / "source", Home(directory / "home")
    overrides = {name: value for name, value in CONFIG.items() if name != "vocab_size"}
    make_model_directory(source, "llama", **overrides)
    save_file(_tensors(base_tensors()), source / "model.safetensors", {"format": "pt"})
    add_base(home, "hub", str(source), group_size=32, report=partial(print, end=""))
    return AddedBase(home, "hub", StoredBase.open(home.bases / "hub"))


def hub_adapter(name: str) -> RandomAdapter:
    """One of AdapterHub's adapters."""
    adapter = ADAPTERS[name]
    params = BottleneckParams(
        bottleneck_size=adapter.size,
        non_linearity=adapter.config["non_linearity"],
        reads=adapter.reads,
        places=adapter.places,
        layers=adapter.layers,
        scaling=float(adapter.config.get("scaling", 1.0)),
    )
    return RandomAdapter("bottleneck", params, _tensors(adapter_tensors(name)))


def hub_fusion(name: str) -> RandomAdapter:
    """One of AdapterHub's fusions, with its parts."""
    case = CASES[name]
    parts = tuple(hub_adapter(part) for part in case.adapters)
    params = FusionParams(
        parts=tuple(
            Reference(AdapterName("hub", part), digest=adapter.digest)
            for part, adapter in zip(case.adapters, parts, strict=True)
        ),
        reads=parts[0].params.reads,
        places=parts[0].params.places,
        layers=parts[0].params.layers,
        value=case.fusion == "dynamic",
    )
    return RandomAdapter("fusion", params, _tensors(fusion_tensors(name)), parts)


def _tensors(arrays: dict[str, Array]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
