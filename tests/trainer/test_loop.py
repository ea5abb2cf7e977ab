from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny_models import AddedBase
from tests.trainer.results import resumed, weights
from weft_adapters.base.load import StoredBase
from weft_registry import artifact as artifacts
from weft_registry.errors import InvalidInputError, NotFoundError
from weft_registry.home import Home
from weft_trainer import train as runs
from weft_trainer.config.data import DatasetConfig
from weft_trainer.config.run import TrainConfig
from weft_trainer.progress import QuietReporter, Task
from weft_trainer.training import checkpoints

Run = Callable[[TrainConfig, AddedBase], Path]
METHODS = {
    "lora": {"r": 4, "dropout": 0.2},
    "qalora": {"r": 2, "dropout": 0.2, "layers": "top:2"},
    "prefix": {"num_virtual_tokens": 4, "prefix_projection": True},
    "p_tuning": {"num_virtual_tokens": 4, "encoder": "lstm", "encoder_hidden_size": 16, "encoder_dropout": 0.2},
}


class CrashError(Exception):
    """Ends a run as a killed process would: nothing of it runs on."""


class CrashAfter(QuietReporter):
    """Crashes the run when the training task has come to `step`."""

    def __init__(self, step: int) -> None:
        self._left = step

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Task]:
        with super().task(label, total) as task:
            yield self if label.startswith("training") else task

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        self._left -= steps
        if self._left == 0:
            raise CrashError

    def skip(self, steps: int) -> None:
        self._left -= steps


# 32 examples: an epoch is four steps, or with the uneven batches four steps whose last one is smaller. The checkpoint
# lies in the middle of an epoch, of a later epoch, and at its end.
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"save_every": 3}),
    "qalora": ("qalora", {"save_every": 3}),
    "prefix": ("prefix", {"save_every": 3}),
    "p_tuning": ("p_tuning", {"save_every": 3}),
    "lora in a later epoch, accumulating": (
        "lora",
        {"steps": 12, "save_every": 6, "batch_size": 5, "gradient_accumulation": 2, "schedule": "cosine"},
    ),
    "qalora at an epoch's end, accumulating": (
        "qalora",
        {"save_every": 4, "batch_size": 4, "gradient_accumulation": 2},
    ),
    "prefix in a later epoch, accumulating": (
        "prefix",
        {"steps": 10, "save_every": 5, "batch_size": 4, "gradient_accumulation": 2, "weight_decay": 0.1},
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_crashed_run_that_resumes_ends_bit_for_bit_where_an_uninterrupted_one_does(
    deep_base: AddedBase, make_config: Callable[..., TrainConfig], run: Run, name: str
) -> None:
    method, training = RUNS[name]
    config = make_config(deep_base, method, METHODS[method], **training)
    whole = weights(run(config, deep_base))
    shutil.rmtree(config.output)
    with pytest.raises(CrashError):
        runs.train(config, CrashAfter(training["save_every"] + 1), deep_base.home)
    assert not config.output.exists()
    again = weights(run(resumed(config), deep_base))
    assert whole.keys() == again.keys()
    for key, tensor in whole.items():
        assert torch.equal(tensor, again[key]), key


def test_a_checkpoint_cut_short_is_passed_over_for_the_one_before(
    deep_base: AddedBase, make_config: Callable[..., TrainConfig], run: Run
) -> None:
    config = make_config(deep_base, "lora", METHODS["lora"], save_every=2)
    whole = weights(run(config, deep_base))
    assert {p.name for p in config.checkpoints.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-6"}
    (config.checkpoints / "checkpoint-6" / "trainer_state.json").write_text('{"epoch": 1.')
    assert checkpoints.newest(config.checkpoints) == config.checkpoints / "checkpoint-4"
    again = weights(run(resumed(config), deep_base))
    assert all(torch.equal(tensor, again[key]) for key, tensor in whole.items())


def test_a_checkpoint_holds_the_adapter_and_not_the_base(
    deep_base: AddedBase, make_config: Callable[..., TrainConfig], run: Run
) -> None:
    config = make_config(deep_base, "lora", {"r": 4}, save_every=3)
    run(config, deep_base)
    state = load_file(str(config.checkpoints / "checkpoint-3" / "trainable.safetensors"))
    assert all(".lora_" in name for name in state)
    assert len(state) == 2 * len(deep_base.stored.spec.linears)


def test_resuming_another_configurations_run_is_refused(
    deep_base: AddedBase, make_config: Callable[..., TrainConfig], run: Run
) -> None:
    config = make_config(deep_base, "lora", {"r": 4}, save_every=3)
    with pytest.raises(NotFoundError, match="no checkpoint"):
        run(resumed(config), deep_base)
    run(config, deep_base)
    other = replace(config, training=replace(config.training, learning_rate=0.5))
    with pytest.raises(InvalidInputError, match=r"training\.learning_rate changed"):
        run(resumed(other), deep_base)


def test_a_run_goes_on_over_the_same_data_wherever_it_lies_and_over_no_other(
    deep_base: AddedBase, make_config: Callable[..., TrainConfig], run: Run, tmp_path: Path
) -> None:
    def over(*files: Path) -> TrainConfig:
        config = make_config(deep_base, "lora", {"r": 4}, save_every=3)
        return replace(config, data=replace(config.data, train=tuple(DatasetConfig(file) for file in files)))

    given = make_config(deep_base, "lora").data.training_sets[0].path
    first, second = (Path(shutil.copy(given, tmp_path / name)) for name in ("first.jsonl", "second.jsonl"))
    whole = weights(run(over(first, second), deep_base))
    shutil.rmtree(over(first).checkpoints / "checkpoint-6")
    moved = second.rename(tmp_path / "moved.jsonl")
    again = weights(run(resumed(over(first, moved)), deep_base))
    assert all(torch.equal(tensor, again[key]) for key, tensor in whole.items())
    moved.write_text(moved.read_text() + json.dumps({"prompt": "one more", "completion": " row"}) + "\n")
    with pytest.raises(InvalidInputError, match=r"of another run: data\.train changed; restore it"):
        run(resumed(over(first, moved)), deep_base)
    moved.unlink()
    with pytest.raises(NotFoundError, match=r"data\.train: .*moved\.jsonl cannot be read: No such file"):
        run(resumed(over(first, moved)), deep_base)


@pytest.mark.parametrize("length", [{"steps": 6}, {"steps": None, "epochs": 2}])
def test_a_run_over_weighted_files_resumes_bit_for_bit(
    deep_base: AddedBase, make_config: Callable[..., TrainConfig], run: Run, length: dict[str, Any]
) -> None:
    config = make_config(deep_base, "lora", {"r": 4, "dropout": 0.2}, save_every=3, **length)
    given = config.data.training_sets[0].path
    files = (DatasetConfig(given, weight=1), DatasetConfig(given, weight=3, format="prompt-completion"))
    config = replace(config, data=replace(config.data, train=files))
    whole = weights(run(config, deep_base))
    steps = sorted(checkpoints.step_of(path) for path in config.checkpoints.glob("checkpoint-*"))
    assert len(steps) > 1
    shutil.rmtree(config.checkpoints / checkpoints.name_of(steps[-1]))
    again = weights(run(resumed(config), deep_base))
    assert all(torch.equal(tensor, again[key]) for key, tensor in whole.items())


def test_a_run_does_not_go_on_over_another_base_of_the_same_name(
    tiny_base: Callable[..., AddedBase], make_config: Callable[..., TrainConfig], run: Run, tmp_path: Path
) -> None:
    home = Home(tmp_path / "home")

    def store(base: AddedBase) -> AddedBase:
        shutil.rmtree(home.bases, ignore_errors=True)
        path = shutil.copytree(base.home.bases / base.name, home.bases / "base")
        return AddedBase(home, "base", StoredBase.open(Path(path)))

    base = store(tiny_base("llama"))
    config = make_config(base, "lora", {"r": 4}, save_every=3)
    run(config, base)
    with pytest.raises(InvalidInputError, match="of another run: base changed"):
        run(resumed(config), store(tiny_base("llama", seed=7)))


def test_a_fresh_run_does_not_keep_another_runs_checkpoints(
    deep_base: AddedBase, make_config: Callable[..., TrainConfig], run: Run
) -> None:
    config = make_config(deep_base, "lora", {"r": 4}, save_every=3)
    run(config, deep_base)
    run(replace(config, training=replace(config.training, steps=3)), deep_base)
    assert sorted(p.name for p in config.checkpoints.iterdir()) == ["checkpoint-3", "config.json", "log.jsonl"]
    shutil.rmtree(config.checkpoints)
    config.checkpoints.mkdir()
    (config.checkpoints / "thesis.md").touch()
    with pytest.raises(InvalidInputError, match="no checkpoints of ours"):
        run(config, deep_base)
    assert (config.checkpoints / "thesis.md").exists()


def test_accumulated_small_batches_train_like_one_large_batch(
    deep_base: AddedBase, make_config: Callable[..., TrainConfig], run: Run
) -> None:
    options = {"r": 2, "layers": "top:2"}
    common = {"steps": 3, "learning_rate": 1e-3}
    large = weights(run(make_config(deep_base, "qalora", options, batch_size=8, **common), deep_base))
    small = make_config(deep_base, "qalora", options, batch_size=2, gradient_accumulation=4, **common)
    for name, tensor in weights(run(small, deep_base)).items():
        torch.testing.assert_close(tensor, large[name], atol=1e-4, rtol=1e-2)


def test_training_learns_the_task(deep_base: AddedBase, make_config: Callable[..., TrainConfig], run: Run) -> None:
    config = make_config(deep_base, "lora", {"r": 4}, steps=60, batch_size=16)
    metrics = {m.name: m.value for m in artifacts.read(run(config, deep_base)).metrics}
    assert float(metrics["exact_match"]) >= 0.9
    assert metrics["examples"] == "8"
