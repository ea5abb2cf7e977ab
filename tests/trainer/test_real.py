"""A few steps of each method on the real base: that the pieces fit at its size, not that it learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny_models import AddedBase
from weft_registry import artifact as artifacts
from weft_trainer import train as runs
from weft_trainer.config import run as configs
from weft_trainer.progress import QuietReporter


@pytest.mark.real
@pytest.mark.parametrize(
    ("method", "adapter"),
    [
        ("lora", {"r": 4, "layers": "top:2"}),
        ("qalora", {"r": 4, "layers": "top:2"}),
        ("prefix", {"init_text": "Answer with a colour."}),
    ],
)
def test_a_few_steps_lower_the_loss(
    real_base: AddedBase, tmp_path: Path, method: str, adapter: dict[str, object]
) -> None:
    rows = [{"prompt": f"Item {i}. Colour:", "completion": (" red", " blue")[i % 2]} for i in range(16)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    losses = []
    for rate in (1e-9, 5e-3):
        config = configs.parse(
            {
                "base": real_base.name,
                "method": method,
                "output": str(tmp_path / "out"),
                "data": {"train": str(tmp_path / "data.jsonl"), "eval": str(tmp_path / "data.jsonl")},
                "adapter": adapter,
                "training": {"steps": 3, "batch_size": 8, "learning_rate": rate, "warmup": 0.0},
            }
        )
        manifest = artifacts.read(runs.train(config, QuietReporter(), real_base.home))
        losses.append(float(next(m.value for m in manifest.metrics if m.name == "loss")))
    assert losses[1] < 0.8 * losses[0]
