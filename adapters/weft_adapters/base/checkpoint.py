"""What an importer hands to the store: a model read from any format, in the stored form's names and dtypes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weft_adapters.base.config import ModelConfig

TensorPlan = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""The dtype and shape of every tensor that will be stored, by stored name."""


@dataclass(frozen=True)
class Checkpoint:
    """A model ready to be stored. Nothing is read before `tensors` is iterated."""

    config_json: Mapping[str, Any]
    """The content of the stored config.json: what `config` was parsed from."""
    config: ModelConfig
    group_size: int
    bits: int
    """Of the linears' codes."""
    plan: TensorPlan
    tensors: Callable[[], Iterator[tuple[str, Tensor]]]
    """Yields every planned tensor once, one at a time, in any order."""
    write_tokenizer: Callable[[Path], None]
    """Writes tokenizer.json and tokenizer_config.json into a directory."""
    default_id: str
    """What the model is called when its source has no better name."""
