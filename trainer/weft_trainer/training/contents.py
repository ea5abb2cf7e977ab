"""What of a checkpoint is ours: the trainable parameters, the figures, and early stopping's best."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from weft_trainer.modeling.adapted import load_exactly
from weft_trainer.training.best import Best
from weft_trainer.training.figures import Figures

STATE_FILE = "trainable.safetensors"


def save(checkpoint: Path, parameters: Mapping[str, Tensor], figures: Figures, best: Best | None) -> None:
    """Into a checkpoint's directory, which is made if need be."""
    checkpoint.mkdir(parents=True, exist_ok=True)
    values = {name: parameter.detach().cpu().contiguous() for name, parameter in parameters.items()}
    save_file(values, str(checkpoint / STATE_FILE))
    figures.save(checkpoint)
    if best is not None:
        best.save(checkpoint)


def load(checkpoint: Path, parameters: Mapping[str, Tensor], figures: Figures, best: Best | None) -> None:
    """From a checkpoint's directory, in place. Raises what `load_exactly` raises."""
    load_exactly(parameters, load_file(str(checkpoint / STATE_FILE)))
    figures.load(checkpoint)
    if best is not None:
        best.load(checkpoint)
