"""Scores in a checkpoint: JSON keeps a float's every bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from weft_trainer.objectives.dpo import PairScore
from weft_trainer.objectives.score import Part, Score


def to_json(score: Score | None) -> dict[str, Any] | None:
    """What `from_json` makes the same score of."""
    return None if score is None else asdict(score)


def from_json(state: Mapping[str, Any] | None) -> Score | None:
    """The score that `to_json` was given."""
    return None if state is None else _score(state)


def _score(state: Mapping[str, Any]) -> Score:
    parts = tuple(Part(part["name"], _score(part["score"])) for part in state["parts"])
    if "reward_accuracy" not in state:
        return Score(state["loss"], state["exact_match"], state["examples"], parts)
    rewards = {name: state[name] for name in ("reward_accuracy", "reward_margin")}
    return PairScore(state["loss"], state["exact_match"], state["examples"], parts, **rewards)
