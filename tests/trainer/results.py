"""What a run leaves, and the same run going on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from weft_registry import artifact
from weft_trainer.config.run import TrainConfig


def weights(directory: Path) -> dict[str, Tensor]:
    """The tensors of an artifact."""
    return load_file(str(directory / artifact.WEIGHTS))


def resumed(config: TrainConfig) -> TrainConfig:
    """The run that goes on from its newest checkpoint."""
    return replace(config, training=replace(config.training, resume=True))
