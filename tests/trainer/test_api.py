from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_models import AddedBase
from weft_registry.errors import InvalidInputError, NotFoundError
from weft_trainer import api
from weft_trainer.progress import QuietReporter


@pytest.fixture
def config_file(deep_base: AddedBase, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WEFT_HOME", str(deep_base.home.root))
    path = tmp_path / "run.yaml"
    path.write_text(
        json.dumps(
            {
                "base": deep_base.name,
                "method": "lora",
                "output": str(tmp_path / "out"),
                "data": {"train": str(task_file)},
                "adapter": {"r": 4},
                "training": {"steps": 40, "dtype": "float32", "learning_rate": 1e-2, "log_every": 5},
            }
        )
    )
    return path


def test_a_file_is_trained_and_its_artifact_scored(config_file: Path, deep_base: AddedBase, task_file: Path) -> None:
    artifact = api.train_from_file(config_file, ["training.batch_size=16"], QuietReporter())
    found = api.evaluate_artifact(artifact, task_file, dtype="float32", report=QuietReporter())
    base = api.evaluate_artifact(None, task_file, base=deep_base.name, dtype="float32", report=QuietReporter())
    assert found["exact_match"] > base["exact_match"] + 0.5
    merged = api.evaluate_artifact(artifact, task_file, merged=True, dtype="float32", report=QuietReporter())
    assert merged["loss"] == pytest.approx(found["loss"], rel=1e-3)
    assert api.evaluate_artifact(artifact, task_file, rows=5, report=QuietReporter())["examples"] == 5


def test_progress_goes_to_standard_error_with_loss_rate_and_time_left(
    config_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    api.train_from_file(config_file, ["training.eval_every=20"])
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "tokens/s" in captured.err
    assert "s left" in captured.err
    assert [captured.err.count(f"step {n}: eval loss") for n in (20, 40)] == [1, 1], "once each, the last one too"
    assert "arning" not in captured.err


def test_unknown_bases_and_files_are_named(config_file: Path, task_file: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no base model 'nobody'"):
        api.train_from_file(config_file, ["base=nobody"], QuietReporter())
    with pytest.raises(NotFoundError, match=r"none\.jsonl"):
        api.train_from_file(config_file, [f"data.train={tmp_path}/none.jsonl"], QuietReporter())
    with pytest.raises(InvalidInputError, match="dtype"):
        api.evaluate_artifact(None, task_file, base="b", dtype="int3", report=QuietReporter())


def test_reading_a_configuration_needs_no_torch() -> None:
    code = "import sys, weft_trainer.api; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'peft')))"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_a_chat_is_trained_on_the_answer_alone(
    config_file: Path, tmp_path: Path, tiny_base: Callable[..., AddedBase]
) -> None:
    rows = []
    for i in range(20):
        question = {"role": "user", "content": f"say {i % 2}"}
        rows.append({"messages": [question, {"role": "assistant", "content": ("yes", "no")[i % 2]}]})
    data = tmp_path / "chat.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    artifact = api.train_from_file(config_file, [f"data.train={data}"], QuietReporter())
    assert api.evaluate_artifact(artifact, data, dtype="float32", report=QuietReporter())["exact_match"] == 1.0
