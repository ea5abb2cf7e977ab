"""SIGINT and SIGTERM at every stage of a run: nothing that was computed is lost, nothing is left behind, and what is
said is true."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_models import AddedBase
from tests.trainer.reporters import Heard, send
from tests.trainer.results import resumed, weights
from tests.trainer.scores import measure
from weft_adapters.extraction import extract
from weft_registry import artifact as artifacts
from weft_registry.errors import PreconditionError
from weft_trainer import train as runs
from weft_trainer.config.run import TrainConfig
from weft_trainer.output.curve import loss_curve
from weft_trainer.progress import QuietReporter
from weft_trainer.training import checkpoints

MakeConfig = Callable[..., TrainConfig]
Run = Callable[[TrainConfig, AddedBase], Path]


def logged(config: TrainConfig) -> list[dict[str, Any]]:
    """What the run's log has, but for its clocks."""
    lines = [json.loads(line) for line in (config.checkpoints / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("time", "tokens_per_s")} for line in lines]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files are."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint_that_the_run_resumes_from_bit_for_bit(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, number: int
) -> None:
    # No save_every, and an evaluation due at the very step: neither is in the way.
    config = make_config(deep_base, "lora", {"r": 4, "dropout": 0.2}, eval_every=2, early_stopping_patience=9)
    whole = artifacts.read(run(config, deep_base))
    before = signal.getsignal(number)
    report = Heard(4, send(number))
    with pytest.raises(PreconditionError, match=r"after step 4 of 6.*checkpoint-4.*training\.resume=true") as caught:
        runs.train(config, report, deep_base.home)
    assert caught.value.reason == "INTERRUPTED"
    assert caught.value.metadata["signal"] == str(int(number))
    assert signal.getsignal(number) is before
    assert any("once more ends at once" in text for text in report.messages)
    again = artifacts.read(run(resumed(config), deep_base))
    assert again.tensors == whole.tensors
    assert [m.value for m in again.metrics] == [m.value for m in whole.metrics]


def test_a_process_that_is_asked_to_end_saves_and_says_how_to_go_on(
    deep_base: AddedBase, task_file: Path, tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    settings = {"steps": 100_000, "dtype": "float32", "log_every": 1, "save_every": 100_000}
    document = {"base": deep_base.name, "method": "lora", "output": str(tmp_path / "out"), "training": settings}
    config.write_text(json.dumps(document | {"data": {"train": str(task_file)}, "adapter": {"r": 2}}))
    environment = os.environ | {"WEFT_HOME": str(deep_base.home.root), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "weft_client.cli", "train", str(config), "adapter.dropout=0.1", "-q"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    log = tmp_path / "out.checkpoints" / "log.jsonl"
    while process.poll() is None and not (log.is_file() and log.read_text().count("\n") > 2):
        time.sleep(0.05)
    process.terminate()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, said
    saved = checkpoints.newest(tmp_path / "out.checkpoints")
    assert saved is not None
    said = said.splitlines()[-1]
    assert said.startswith("error: stopped by SIGTERM after step ")
    assert f"everything is in {saved}: go on with the same configuration and training.resume=true: weft train" in said
    # What it says is what runs: the same words, and from where it stopped.
    words = shlex.split(said.rpartition("training.resume=true: ")[2])
    assert words == ["weft", *command[3:], "--resume"]


def test_a_second_signal_ends_the_run_at_once(deep_base: AddedBase, make_config: MakeConfig) -> None:
    def twice() -> None:
        send(signal.SIGINT)()
        send(signal.SIGINT)()

    config = make_config(deep_base, "lora", {"r": 4})
    with pytest.raises(KeyboardInterrupt):
        runs.train(config, Heard(2, twice), deep_base.home)
    assert not config.checkpoints.exists()


@pytest.mark.parametrize("stopped_at", [4, 6])
def test_a_stopped_run_logs_what_one_that_was_not_does(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, stopped_at: int
) -> None:
    # Steps 4 and 6 stand between two logs; 6 is the last one, and the log of it comes with it.
    config = make_config(deep_base, "lora", {"r": 4}, log_every=5, save_every=1)
    run(config, deep_base)
    whole = logged(config)
    assert [line["step"] for line in whole] == [5, 6, 6]
    with pytest.raises(PreconditionError, match=f"after step {stopped_at} of 6"):
        runs.train(config, Heard(stopped_at, send(signal.SIGTERM)), deep_base.home)
    run(resumed(config), deep_base)
    assert logged(config) == whole


def test_a_signal_during_the_last_step_leaves_the_rest_to_the_resumed_run(
    deep_base: AddedBase, make_config: MakeConfig, run: Run
) -> None:
    config = make_config(deep_base, "lora", {"r": 4})
    whole = artifacts.read(run(config, deep_base))
    with pytest.raises(PreconditionError, match=r"after step 6 of 6.*checkpoint-6: go on"):
        runs.train(config, Heard(6, send(signal.SIGTERM)), deep_base.home)
    report = Heard()
    again = artifacts.read(runs.train(resumed(config), report, deep_base.home))
    assert report.steps == 0, "no step is taken twice"
    assert again.tensors == whole.tensors
    assert again.metrics == whole.metrics


@pytest.mark.parametrize(("eval_every", "stopped_at"), [(2, 2), (3, 6), (None, 6)])
def test_a_signal_cuts_an_evaluation_off_and_the_resumed_run_begins_with_it(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, eval_every: int | None, stopped_at: int
) -> None:
    config = make_config(deep_base, "lora", {"r": 4, "dropout": 0.2}, eval_every=eval_every, save_every=100)
    whole, log = artifacts.read(run(config, deep_base)), None
    log = logged(config)
    held_out = int(next(metric.value for metric in whole.metrics if metric.name == "examples"))
    evaluation = held_out if stopped_at == 2 or eval_every is None else 2 * held_out
    report = Heard(evaluation, send(signal.SIGTERM), label="evaluating")
    with pytest.raises(PreconditionError, match=rf"after step {stopped_at} of 6.*checkpoint-{stopped_at}:"):
        runs.train(config, report, deep_base.home)
    assert [line["step"] for line in logged(config) if "eval_loss" in line] == ([3] if eval_every == 3 else [])
    # And once more, in the evaluation that makes up for it.
    with pytest.raises(PreconditionError, match=rf"after step {stopped_at} of 6.*checkpoint-{stopped_at}:"):
        runs.train(resumed(config), Heard(held_out, send(signal.SIGTERM), label="evaluating"), deep_base.home)
    again = artifacts.read(run(resumed(config), deep_base))
    assert again.tensors == whole.tensors
    assert again.metrics == whole.metrics
    assert logged(config) == log


@pytest.mark.parametrize("label", ["training", "evaluating"])
def test_the_evaluation_that_a_resumed_run_begins_with_may_be_its_last(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, monkeypatch: pytest.MonkeyPatch, label: str
) -> None:
    # Waiting for a lower loss ends with the evaluation of step 3, which the signal leaves out.
    common = {"eval_every": 1, "early_stopping_patience": 2, "save_every": 1, "learning_rate": 1e-2, "warmup": 0.0}
    config = make_config(deep_base, "lora", {"r": 4}, steps=9, **common)
    measure(monkeypatch, iter([1.0, 2.0, 3.0]))
    whole, log = artifacts.read(run(config, deep_base)), logged(config)
    assert (whole.provenance["steps"], log[-1]["step"]) == (1, 3)

    def third() -> float:
        if label == "evaluating":
            send(signal.SIGTERM)()
        raise AssertionError("the signal comes first")

    measure(monkeypatch, (value() for value in (lambda: 1.0, lambda: 2.0, third)))
    report = Heard(3, send(signal.SIGTERM)) if label == "training" else Heard()
    with pytest.raises(PreconditionError, match="after step 3 of 9"):
        runs.train(config, report, deep_base.home)
    measure(monkeypatch, iter([3.0]))
    again = artifacts.read(run(resumed(config), deep_base))
    assert again.tensors == whole.tensors
    assert again.metrics == whole.metrics
    assert again.provenance["steps"] == whole.provenance["steps"]
    assert logged(config) == log


def test_a_run_that_ended_is_resumed_without_a_second_line_in_its_log(
    deep_base: AddedBase, make_config: MakeConfig, run: Run
) -> None:
    # The checkpoint of the last step is saved before the evaluation of it.
    config = make_config(deep_base, "lora", {"r": 4}, save_every=3)
    whole, log = artifacts.read(run(config, deep_base)), logged(config)
    assert "eval_loss" in log[-1]
    assert artifacts.read(run(resumed(config), deep_base)).tensors == whole.tensors
    assert logged(config) == log


@pytest.mark.parametrize("patience", [None, 1])
def test_a_signal_during_the_extraction_keeps_what_was_trained(
    deep_base: AddedBase,
    make_config: MakeConfig,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    temporary: Path,
    patience: int | None,
) -> None:
    early = {} if patience is None else {"eval_every": 1, "early_stopping_patience": patience}
    config, ends_at = make_config(deep_base, "full", {"extract": {"rank": 8}}, **early), 6
    if patience is not None:
        # The parameters that are kept are those of step 2, and not the last step's.
        measure(monkeypatch, cycle([2.0, 1.0, 3.0]))
        ends_at = 3
    whole = artifacts.read(run(config, deep_base))
    assert whole.provenance["steps"] == (6 if patience is None else 2)

    def ended(*arguments: Any) -> Any:
        send(signal.SIGTERM)()
        return extract(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("weft_trainer.methods.full.extract", ended)
        with pytest.raises(PreconditionError, match=rf"after step {ends_at} of 6.*checkpoint-{ends_at}: go on"):
            run(config, deep_base)
    assert not list(temporary.iterdir())
    assert not (config.checkpoints / f"checkpoint-{ends_at}" / "optimizer.pt").exists(), "no step needs it any more"
    report = Heard()
    again = artifacts.read(runs.train(resumed(config), report, deep_base.home))
    assert report.steps == 0, "no step is taken twice"
    assert again.tensors == whole.tensors
    assert again.metrics == whole.metrics
    assert again.provenance["steps"] == whole.provenance["steps"]


class Preparing(QuietReporter):
    """Sends a signal as the run begins to speak, which it does before it trains."""

    def message(self, text: str) -> None:
        send(signal.SIGTERM)()


def test_a_signal_before_training_ends_at_once_and_says_what_there_is(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, temporary: Path
) -> None:
    config = make_config(deep_base, "lora", {"r": 4}, save_every=3)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(PreconditionError, match="before the first step: there is nothing to resume") as caught:
        runs.train(config, Preparing(), deep_base.home)
    assert caught.value.reason == "INTERRUPTED"
    assert caught.value.metadata == {"signal": str(int(signal.SIGTERM))}
    assert signal.getsignal(signal.SIGTERM) is before
    assert not config.checkpoints.exists()
    run(replace(config, training=replace(config.training, steps=6)), deep_base)
    saved = config.checkpoints / "checkpoint-6"
    with pytest.raises(PreconditionError, match=f"everything is still in {saved}: go on with") as caught:
        runs.train(resumed(config), Preparing(), deep_base.home)
    assert caught.value.metadata["checkpoint"] == str(saved)
    assert not list(temporary.iterdir())


def test_a_second_sigterm_ends_at_once_and_leaves_nothing_behind(
    deep_base: AddedBase, make_config: MakeConfig, temporary: Path
) -> None:
    def twice() -> None:
        send(signal.SIGTERM)()
        assert list(temporary.iterdir()), "the run has files of its own"
        send(signal.SIGTERM)()

    before = signal.getsignal(signal.SIGTERM)
    assert before is signal.SIG_DFL
    with pytest.raises(SystemExit) as caught:
        runs.train(make_config(deep_base, "lora", {"r": 4}), Heard(2, twice), deep_base.home)
    assert caught.value.code == 128 + signal.SIGTERM
    assert not list(temporary.iterdir())
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_while_the_artifact_is_written_lets_it_be_written(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupting(history: Any) -> Any:
        send(signal.SIGTERM)()
        return loss_curve(history)

    monkeypatch.setattr("weft_trainer.output.export.loss_curve", interrupting)
    report = Heard()
    artifact = runs.train(make_config(deep_base, "lora", {"r": 4}), report, deep_base.home)
    assert weights(artifact)
    assert "SIGTERM: writing the artifact; once more ends at once" in report.messages
