"""Training in two processes on the CPU: the same steps as one process with the same batch."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny_models import AddedBase
from tests.trainer.reporters import Heard, send
from weft_registry import artifact as artifacts
from weft_registry.errors import PreconditionError
from weft_trainer import parallel
from weft_trainer import train as runs
from weft_trainer.config.run import TrainConfig
from weft_trainer.progress import QuietReporter

MakeConfig = Callable[..., TrainConfig]
Run = Callable[[TrainConfig, AddedBase], Path]

pytestmark = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")


def losses(config: TrainConfig) -> dict[int, float]:
    lines = [json.loads(line) for line in (config.checkpoints / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def grad_norms(config: TrainConfig) -> dict[int, float]:
    lines = [json.loads(line) for line in (config.checkpoints / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["grad_norm"] for line in lines if "loss" in line}


def test_two_processes_train_what_one_with_the_same_batch_does(
    deep_base: AddedBase, make_config: MakeConfig, run: Run
) -> None:
    # Four steps an epoch, so two epochs: the order of the second must agree too.
    common = {"steps": 6, "save_every": 3, "eval_every": 3, "gradient_accumulation": 2}
    config = make_config(deep_base, "lora", {"r": 4}, batch_size=4, **common)
    one = artifacts.read(run(config, deep_base))
    expected, expected_losses, norms = load_file(config.output / artifacts.WEIGHTS), losses(config), grad_norms(config)
    together, report = make_config(deep_base, "lora", {"r": 4}, batch_size=2, devices=2, **common), Heard()
    two = artifacts.read(runs.train(together, report, deep_base.home))
    found = load_file(together.output / artifacts.WEIGHTS)
    assert losses(together) == pytest.approx(expected_losses, rel=1e-4)
    assert grad_norms(together) == pytest.approx(norms, rel=1e-3)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=2e-5)
    assert {m.name: float(m.value) for m in two.metrics} == pytest.approx(
        {m.name: float(m.value) for m in one.metrics}, rel=1e-4
    )
    # What the first process reports is heard here, once.
    assert report.steps == 6
    assert sum("step 3: eval loss" in text for text in report.messages) == 1
    assert not multiprocessing.active_children()
    assert {p.name for p in together.checkpoints.iterdir()} == {
        *("config.json", "log.jsonl", "checkpoint-3", "checkpoint-6")
    }


def test_two_processes_stop_and_resume_bit_for_bit(deep_base: AddedBase, make_config: MakeConfig) -> None:
    config = make_config(deep_base, "lora", {"r": 4, "dropout": 0.2}, batch_size=4, devices=2)
    whole = artifacts.read(runs.train(config, Heard(), deep_base.home)).tensors
    # The step at which the signal arrives depends on when it does; that there is a checkpoint of it does not.
    with pytest.raises(PreconditionError, match=r"after step [1-5] of 6.*training\.resume=true") as caught:
        runs.train(config, Heard(1, send(signal.SIGTERM)), deep_base.home)
    assert caught.value.metadata["signal"] == str(int(signal.SIGTERM))
    assert not multiprocessing.active_children()
    resumed = replace(config, training=replace(config.training, resume=True))
    assert artifacts.read(runs.train(resumed, Heard(), deep_base.home)).tensors == whole


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_processes_are_started_stops_them(
    deep_base: AddedBase, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    start = multiprocessing.process.BaseProcess.start
    begun: list[multiprocessing.process.BaseProcess] = []

    def interrupting(worker: multiprocessing.process.BaseProcess) -> None:
        if not begun:
            send(number)()
        start(worker)
        begun.append(worker)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", interrupting)
    config = make_config(deep_base, "lora", {"r": 4}, devices=2)
    with pytest.raises(PreconditionError, match="before the first step: there is nothing to resume") as caught:
        runs.train(config, QuietReporter(), deep_base.home)
    assert caught.value.metadata == {"signal": str(int(number))}
    assert len(begun) == 2
    assert not multiprocessing.active_children()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())


def test_an_error_in_the_processes_is_the_runs_error(deep_base: AddedBase, make_config: MakeConfig) -> None:
    config = make_config(deep_base, "lora", {"r": 4}, devices=2, learning_rate=1e30, max_grad_norm=0.0, warmup=0.0)
    with pytest.raises(PreconditionError, match="diverged at step"):
        runs.train(config, QuietReporter(), deep_base.home)
    assert not multiprocessing.active_children()
    assert not config.output.exists()


def test_more_devices_than_there_are_is_refused(deep_base: AddedBase, make_config: MakeConfig, run: Run) -> None:
    config = make_config(deep_base, "lora", {"r": 4}, devices=(os.cpu_count() or 1) + 1)
    with pytest.raises(PreconditionError, match=r"training\.devices"):
        run(config, deep_base)


def test_a_process_that_just_dies_ends_the_run(
    deep_base: AddedBase, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "_work", os.abort)
    with pytest.raises(PreconditionError, match=r"ended with status"):
        parallel.train_together(make_config(deep_base, "lora", {"r": 4}, devices=2), QuietReporter(), deep_base.home)
    assert not multiprocessing.active_children()
