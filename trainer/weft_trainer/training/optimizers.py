"""Which optimizer a run asks for, and whether it can run here. Decided before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from weft_registry.errors import InvalidInputError, PreconditionError
from weft_trainer.config.run import TrainConfig

# torch's own, in one fused kernel: what transformers takes where nothing is said.
_NAMES: Mapping[str, str] = {"adamw": "adamw_torch_fused"}


@dataclass(frozen=True)
class Need:
    """What an optimizer needs beyond torch."""

    module: str
    package: str
    """What pip calls it."""
    gpu: bool = False
    """Its kernels run on a GPU only."""


_BITSANDBYTES = Need("bitsandbytes", "bitsandbytes", gpu=True)
_NEEDS: Mapping[str, Need] = {
    "adamw_8bit": _BITSANDBYTES,
    "adamw_bnb_8bit": _BITSANDBYTES,
    "ademamix": _BITSANDBYTES,
    "ademamix_8bit": _BITSANDBYTES,
    "lion_32bit": _BITSANDBYTES,
    "lion_8bit": _BITSANDBYTES,
    "paged_adamw_32bit": _BITSANDBYTES,
    "paged_adamw_8bit": _BITSANDBYTES,
    "paged_ademamix_32bit": _BITSANDBYTES,
    "paged_ademamix_8bit": _BITSANDBYTES,
    "paged_lion_32bit": _BITSANDBYTES,
    "paged_lion_8bit": _BITSANDBYTES,
    "rmsprop_bnb": _BITSANDBYTES,
    "rmsprop_bnb_8bit": _BITSANDBYTES,
    "rmsprop_bnb_32bit": _BITSANDBYTES,
    "adamw_torch_4bit": Need("torchao", "torchao"),
    "adamw_torch_8bit": Need("torchao", "torchao"),
    "grokadamw": Need("grokadamw", "grokadamw"),
    "stable_adamw": Need("optimi", "torch-optimi"),
}


def optim_name(config: TrainConfig) -> str:
    """The run's optimizer by transformers' name.

    Raises `PreconditionError` naming the package or the GPU that is not here, `InvalidInputError` for one that is a
    method here.
    """
    name = config.training.optimizer
    if name.startswith("galore_"):
        raise InvalidInputError(
            f"training.optimizer: {name}: GaLore is a method here, because it decides what is trained: method: galore"
        )
    if config.method == "galore" and name != "adamw":
        raise InvalidInputError(f"training.optimizer: {name}, but method galore has its own; leave it out")
    need = _NEEDS.get(name)
    if need is not None and find_spec(need.module) is None:
        raise PreconditionError(
            f"training.optimizer: {name} needs the package {need.package}, which is not installed: "
            f"pip install {need.package}, or take adamw",
            reason="PACKAGE_MISSING",
        )
    if need is not None and need.gpu and not torch.cuda.is_available():
        raise PreconditionError(
            f"training.optimizer: {name} runs on a GPU, and torch finds none: take adamw", reason="GPU_MISSING"
        )
    return _NAMES.get(name, name)
