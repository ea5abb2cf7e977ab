"""What a run has measured that a checkpoint must keep: a run that resumes logs and scores what one that was never
stopped does."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from weft_trainer.objectives.score import Score
from weft_trainer.objectives.score_json import from_json, to_json
from weft_trainer.training.rank import Rank

FILE = "figures.json"


class Figures:
    """The losses since the last log, and the last score. The trainer is their only writer."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self._loss: Tensor = torch.zeros((), device=rank.device())
        self._logged_at = 0
        self.last_score: tuple[int, Score] | None = None
        """(step, score) of the last evaluation."""

    def add(self, loss: Tensor) -> None:
        """One forward pass's share of its step's loss."""
        self._loss = self._loss + loss.detach().to(self._loss.device)

    def take(self, step: int) -> float:
        """The mean loss of the steps since the last call, in all processes; every one of them asks."""
        mean = self._rank.mean(self._loss) / (step - self._logged_at)
        self._loss, self._logged_at = torch.zeros_like(self._loss), step
        return mean

    def settle(self) -> None:
        """Makes the losses those of all processes together, so that one of them can save them; every one calls it."""
        self._loss = torch.full_like(self._loss, self._rank.mean(self._loss))

    def save(self, checkpoint: Path) -> None:
        """Into a checkpoint's directory."""
        step, score = self.last_score or (0, None)
        state = {
            "loss": float(self._loss),
            "logged_at": self._logged_at,
            "scored_at": step,
            "score": to_json(score),
        }
        (checkpoint / FILE).write_text(json.dumps(state))

    def load(self, checkpoint: Path) -> None:
        """From a checkpoint's directory."""
        state = json.loads((checkpoint / FILE).read_text())
        self._loss, self._logged_at = torch.full_like(self._loss, state["loss"]), state["logged_at"]
        score = from_json(state["score"])
        self.last_score = None if score is None else (state["scored_at"], score)
