"""Held-out losses as a test wants them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from weft_trainer.config.run import TrainConfig
from weft_trainer.objectives.score import Score
from weft_trainer.training.adapter_trainer import AdapterTrainer
from weft_trainer.training.identity import Identity

BEGIN = AdapterTrainer.__init__


def measure(monkeypatch: pytest.MonkeyPatch, losses: Iterator[float]) -> None:
    """Makes evaluations find these losses, one after another."""

    def init(
        self: AdapterTrainer, config: TrainConfig, identity: Identity, _scorer: object, *others: Any, **more: Any
    ) -> None:
        BEGIN(self, config, identity, lambda: Score(next(losses), 0.5, 8), *others, **more)

    monkeypatch.setattr(AdapterTrainer, "__init__", init)
