from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_models import AddedBase
from weft_trainer import train as runs
from weft_trainer.config import run as configs
from weft_trainer.progress import QuietReporter

ANSWERS = {"oil": " energy", "film": " culture", "bank": " money", "ship": " trade"}


@pytest.fixture(scope="session")
def task_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 examples of a task that a tiny model can learn: a word decides the answer."""
    words = list(ANSWERS)
    rows = [
        {"prompt": f"Note {i}: the {word} report{'s' * (i % 3)} came in.\nTopic:", "completion": ANSWERS[word]}
        for i, word in enumerate(words * 10)
    ]
    path = tmp_path_factory.mktemp("task") / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def deep_base(tiny_base: Callable[..., AddedBase]) -> AddedBase:
    """A tiny Llama with four layers, so that some can be left alone."""
    return tiny_base("llama", num_hidden_layers=4)


@pytest.fixture
def make_config(task_file: Path, tmp_path: Path) -> Callable[..., configs.TrainConfig]:
    """`make_config(base, method, adapter={...}, **training)`: a short float32 run on `task_file`."""

    def make(
        base: AddedBase, method: str, adapter: dict[str, Any] | None = None, **training: Any
    ) -> configs.TrainConfig:
        data = {"train": str(task_file), "eval_fraction": 0.2}
        training = {"steps": 6, "batch_size": 8, "dtype": "float32", "learning_rate": 1e-2, "log_every": 1} | training
        return configs.parse(
            {
                "base": base.name,
                "method": method,
                "output": str(tmp_path / "artifact"),
                "data": data,
                "adapter": adapter or {},
                "training": training,
            }
        )

    return make


@pytest.fixture
def run() -> Callable[[configs.TrainConfig, AddedBase], Path]:
    """Trains quietly, in the base's home."""

    def run(config: configs.TrainConfig, base: AddedBase) -> Path:
        return runs.train(config, QuietReporter(), base.home)

    return run
