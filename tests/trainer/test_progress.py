"""What a run says, and to whom."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from tests.tiny_models import AddedBase
from weft_client.cli.app import app
from weft_trainer.config.run import TrainConfig
from weft_trainer.progress import ConsoleReporter


def said(reporter: Callable[[Console], ConsoleReporter], terminal: bool) -> str:
    text = StringIO()
    report = reporter(Console(file=text, force_terminal=terminal, width=200))
    report.message("7 left out")
    with report.task("training", 10) as task:
        task.skip(2)
        task.advance(8, "loss 1")
    return text.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_without_bars_there_are_messages_alone(terminal: bool) -> None:
    assert said(lambda console: ConsoleReporter(console, bars=False), terminal) == "7 left out\n"
    whole = said(ConsoleReporter, terminal)
    assert whole.startswith("7 left out\n")
    assert "training" in whole
    assert "loss 1" in whole


def test_a_quiet_run_says_what_it_left_out(
    deep_base: AddedBase,
    make_config: Callable[..., TrainConfig],
    task_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WEFT_HOME", str(deep_base.home.root))
    data = tmp_path / "data.jsonl"
    data.write_text(task_file.read_text() + '{"prompt": "a"}\n')
    document = make_config(deep_base, "lora", {"r": 2}, steps=2).as_json()
    document["data"] |= {"train": str(data), "invalid": "drop"}
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps(document))
    done = CliRunner().invoke(app, ["train", str(config), "-q"])
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{document['output']}\n"
    assert "1 left out, expected" in done.stderr
    assert "line 41" in done.stderr
    assert not any(line.startswith(("training", "evaluating")) for line in done.stderr.splitlines())
