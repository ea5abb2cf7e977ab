"""Early stopping: which parameters had the lowest held-out loss, and when waiting for lower ones is over."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from weft_trainer.objectives.dpo import PairScore
from weft_trainer.objectives.score import Part, Score

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
        return self._worse >= self._patience

    def restore(self, parameters: Mapping[str, Tensor]) -> None:
        """Puts the best values back."""
        with torch.no_grad():
            for name, tensor in self._tensors.items():
                parameters[name].copy_(tensor)

    def save(self, checkpoint: Path) -> None:
        """Into a checkpoint's directory."""
        save_file(self._tensors, str(checkpoint / TENSORS_FILE))
        score = None if self.score is None else asdict(self.score)
        (checkpoint / STATE_FILE).write_text(json.dumps({"step": self.step, "worse": self._worse, "score": score}))

    def load(self, checkpoint: Path) -> None:
        """From a checkpoint's directory. JSON keeps a float's every bit."""
        state = json.loads((checkpoint / STATE_FILE).read_text())
        self.step, self._worse = state["step"], state["worse"]
        self.score = None if state["score"] is None else _score(state["score"])
        self._tensors = load_file(str(checkpoint / TENSORS_FILE))


def _score(state: Mapping[str, Any]) -> Score:
    parts = tuple(Part(part["name"], _score(part["score"])) for part in state["parts"])
    if "reward_accuracy" not in state:
        return Score(state["loss"], state["exact_match"], state["examples"], parts)
    rewards = {name: state[name] for name in ("reward_accuracy", "reward_margin")}
    return PairScore(state["loss"], state["exact_match"], state["examples"], parts, **rewards)
