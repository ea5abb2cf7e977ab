"""Early stopping: which parameters had the lowest held-out loss, and when waiting for lower ones is over."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from weft_trainer.objectives.score import Score
from weft_trainer.objectives.score_json import from_json, to_json

TENSORS_FILE, STATE_FILE = "best.safetensors", "best.json"


class Best:
    """Keeps the best parameters so far, in memory and in every checkpoint. Owns its copies of them."""

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._tensors: dict[str, Tensor] = {}
        self._worse = 0
        self.step = 0
        """The optimizer step of the best parameters; 0 before the first evaluation."""
        self.score: Score | None = None
        """Their score."""

    def offer(self, step: int, score: Score, parameters: Mapping[str, Tensor]) -> bool:
        """Takes the parameters of `step` if their loss is the lowest. Returns whether to stop: `patience` evaluations
        in a row were not lower."""
        if self.score is None or score.loss < self.score.loss:
            self.step, self.score, self._worse = step, score, 0
            self._tensors = {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}
        else:
            self._worse += 1
        return self.is_over

    @property
    def is_over(self) -> bool:
        """Whether waiting for lower losses is over."""
        return self._worse >= self._patience

    def restore(self, parameters: Mapping[str, Tensor]) -> None:
        """Puts the best values back."""
        with torch.no_grad():
            for name, tensor in self._tensors.items():
                parameters[name].copy_(tensor)

    def save(self, checkpoint: Path) -> None:
        """Into a checkpoint's directory."""
        save_file(self._tensors, str(checkpoint / TENSORS_FILE))
        state = {"step": self.step, "worse": self._worse, "score": to_json(self.score)}
        (checkpoint / STATE_FILE).write_text(json.dumps(state))

    def load(self, checkpoint: Path) -> None:
        """From a checkpoint's directory."""
        state = json.loads((checkpoint / STATE_FILE).read_text())
        self.step, self._worse = state["step"], state["worse"]
        self.score = from_json(state["score"])
        self._tensors = load_file(str(checkpoint / TENSORS_FILE))
