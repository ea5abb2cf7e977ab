from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from tests.tiny_models import AddedBase
from weft_registry.errors import PreconditionError
from weft_trainer import train as runs
from weft_trainer.config.run import TrainConfig
from weft_trainer.progress import ConsoleReporter
from weft_trainer.training import journal
from weft_trainer.training.journal import JsonLines

MakeConfig = Callable[..., TrainConfig]
Run = Callable[[TrainConfig, AddedBase], Path]


def lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def scalars(directory: Path) -> dict[str, dict[int, float]]:
    """{tag: {step: value}} of all event files, by the format itself: length, its checksum, the event, its checksum."""
    found: dict[str, dict[int, float]] = {}
    for path in sorted(directory.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            assert struct.unpack_from("<I", data, at + 8)[0] == masked_crc32c(data[at : at + 8])
            body = data[at + 12 : at + 12 + size]
            assert struct.unpack_from("<I", data, at + 12 + size)[0] == masked_crc32c(body)
            event = Event.FromString(body)
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
            at += 12 + size + 4
    return found


def masked_crc32c(data: bytes) -> int:
    """As TensorFlow's record files have it; bit by bit, the polynomial of Castagnoli."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def test_the_log_has_loss_rate_and_gradient_norm_of_every_logged_step(
    deep_base: AddedBase, make_config: MakeConfig, run: Run
) -> None:
    config = make_config(deep_base, "lora", {"r": 4}, steps=5, log_every=2, eval_every=5, save_every=5)
    run(config, deep_base)
    logged = lines(config.checkpoints / "log.jsonl")
    assert [(line["step"], "loss" in line) for line in logged] == [(2, True), (4, True), (5, True), (5, False)]
    for line in logged[:3]:
        assert line.keys() == {"step", "loss", "learning_rate", "grad_norm", "tokens_per_s", "time"}
        assert min(line["loss"], line["grad_norm"], line["tokens_per_s"]) > 0
    assert logged[3].keys() == {"step", "eval_loss", "eval_exact_match", "time"}


def test_tensorboard_shows_what_the_log_says(deep_base: AddedBase, make_config: MakeConfig, run: Run) -> None:
    config = make_config(deep_base, "lora", {"r": 4}, eval_every=3, save_every=6, tensorboard=True)
    run(config, deep_base)
    directory = config.output.with_name(config.output.name + ".tensorboard")
    shown, logged = scalars(directory), lines(config.checkpoints / "log.jsonl")
    assert set(shown) == {
        *("train/loss", "train/learning_rate", "train/grad_norm", "train/tokens_per_s"),
        *("eval/loss", "eval/exact_match"),
    }
    for name, tag in (("loss", "train/loss"), ("grad_norm", "train/grad_norm"), ("eval_loss", "eval/loss")):
        expected = {int(line["step"]): line[name] for line in logged if name in line}
        assert shown[tag] == pytest.approx(expected)
    run(config, deep_base)
    assert scalars(directory)["train/loss"].keys() == {1, 2, 3, 4, 5, 6}
    assert len(list(directory.iterdir())) == 1, "a fresh run replaces the curves of the one before"


def test_tensorboard_takes_a_directory_that_runs_share(deep_base: AddedBase, make_config: MakeConfig, run: Run) -> None:
    config = make_config(deep_base, "lora", {"r": 4}, steps=1)
    shared = config.output.parent / "curves"
    run(replace(config, training=replace(config.training, tensorboard=shared)), deep_base)
    assert "train/loss" in scalars(shared / config.output.name)


def test_without_the_package_tensorboard_is_refused_before_anything_is_loaded(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "find_spec", lambda name: None if name == "tensorboardX" else find_spec(name))
    config = replace(make_config(deep_base, "lora", {"r": 4}, tensorboard=True), base="nobody")
    with pytest.raises(PreconditionError, match="pip install tensorboardX"):
        run(config, deep_base)


def test_the_log_of_a_resumed_run_has_every_step_once(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    config = make_config(deep_base, "lora", {"r": 4}, steps=40, save_every=20)
    config = replace(config, training=replace(config.training, tensorboard=True))
    run(config, deep_base)
    # As if it had been killed between the first checkpoint and the second.
    for path in (config.checkpoints / "checkpoint-40").iterdir():
        path.unlink()
    resumed = replace(config, training=replace(config.training, resume=True))
    runs.train(resumed, ConsoleReporter(), deep_base.home)
    steps = [line["step"] for line in lines(config.checkpoints / "log.jsonl") if "loss" in line]
    assert steps == list(range(1, 41))
    shown = [line for line in capfd.readouterr().err.splitlines() if line.startswith("training lora")]
    assert shown[0].startswith("training lora 24/40"), "the steps before the resumption are not shown again"


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "lo')
    log = JsonLines(tmp_path, from_step=2)
    log.write(3, {"loss": 1.0})
    log.close()
    assert [line["loss"] for line in lines(path)] == [3.0, 2.0, 1.0]
    fresh = JsonLines(tmp_path, from_step=0)
    fresh.close()
    assert path.read_text() == ""


def test_what_is_logged_is_in_the_file_before_the_process_ends(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, signal, sys\n"
        "from weft_trainer.training.journal import JsonLines\n"
        "JsonLines(pathlib.Path(sys.argv[1]), from_step=0).write(1, {'loss': 3.0})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert [line["step"] for line in lines(tmp_path / "log.jsonl")] == [1]
