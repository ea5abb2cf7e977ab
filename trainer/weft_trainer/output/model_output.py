"""Where a run that trains the base's own weights leaves the whole model, and how it gets there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from weft_adapters.base.export_dense import write_dense_directory
from weft_adapters.base.load import StoredBase
from weft_registry.errors import InvalidInputError
from weft_trainer.config.adapter import FullOptions
from weft_trainer.config.run import TrainConfig


def model_output(config: TrainConfig) -> Path | None:
    """OUTPUT.model, if the run keeps the model. Raises `InvalidInputError` if something else lies there."""
    if not isinstance(config.adapter, FullOptions) or not config.adapter.save_model:
        return None
    directory = config.output.with_name(config.output.name + ".model")
    if directory.exists() and any(directory.iterdir()) and not (directory / "model.safetensors").is_file():
        raise InvalidInputError(f"adapter.save_model: {directory} exists and is no model of ours; move it away")
    return directory


def write_model(stored: StoredBase, directory: Path, read: Callable[[str], Tensor]) -> None:
    """Writes the model in float32, replacing an earlier one: whole or not at all."""
    staging = directory.with_name(f".{directory.name}.{os.getpid()}")
    staging.mkdir(parents=True)
    try:
        write_dense_directory(stored, staging, read)
        if directory.exists():
            shutil.rmtree(directory)
        staging.rename(directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
