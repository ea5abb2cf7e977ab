"""How a run ends before its last step: a loss that stops falling or is no number, no memory left."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny_models import AddedBase
from tests.trainer.reporters import Heard, send
from tests.trainer.results import resumed
from tests.trainer.scores import measure
from weft_registry import artifact as artifacts
from weft_registry.errors import ExhaustedError, InvalidInputError, PreconditionError
from weft_trainer import train as runs
from weft_trainer.config.run import TrainConfig
from weft_trainer.modeling.adapted import AdaptedModel
from weft_trainer.objectives.score import Part, Score
from weft_trainer.training import checkpoints, memory
from weft_trainer.training.best import Best

MakeConfig = Callable[..., TrainConfig]
Run = Callable[[TrainConfig, AddedBase], Path]


def test_early_stopping_keeps_the_parameters_of_the_lowest_held_out_loss(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.0, 1.0])
    measure(monkeypatch, losses)
    common = {"eval_every": 1, "learning_rate": 1e-2, "schedule": "constant", "warmup": 0.0}
    config = make_config(deep_base, "lora", {"r": 4}, steps=20, early_stopping_patience=2, **common)
    stopped = artifacts.read(run(config, deep_base))
    assert next(losses) == 1.0, "two evaluations after the best one, and not another"
    assert stopped.provenance["steps"] == 2
    assert {m.name: m.value for m in stopped.metrics}["loss"] == "2.000000"
    measure(monkeypatch, iter([1.0, 1.0]))
    two = artifacts.read(run(make_config(deep_base, "lora", {"r": 4}, steps=2, **common), deep_base))
    assert stopped.tensors == two.tensors


def test_the_best_parameters_survive_a_resumption(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(
        deep_base, "lora", {"r": 4, "dropout": 0.1}, steps=6, eval_every=1, early_stopping_patience=5, save_every=3
    )

    measure(monkeypatch, iter([3.0, 2.0, 2.5, 2.6, 2.7, 2.8]))
    whole = artifacts.read(run(config, deep_base))
    measure(monkeypatch, iter([3.0, 2.0, 2.5]))
    with pytest.raises(PreconditionError, match="after step 4"):
        runs.train(config, Heard(4, send(signal.SIGTERM)), deep_base.home)
    measure(monkeypatch, iter([2.6, 2.7, 2.8]))
    again = artifacts.read(run(resumed(config), deep_base))
    assert again.provenance["steps"] == whole.provenance["steps"] == 2
    assert again.tensors == whole.tensors


def test_best_waits_for_as_many_evaluations_as_it_was_told_to(tmp_path: Path) -> None:
    Best(patience=2).save(tmp_path)
    best = Best(patience=2)
    best.load(tmp_path)
    assert (best.step, best.score) == (0, None)
    values = {"a": torch.zeros(2)}
    assert not best.offer(1, Score(1.0, 0.0, 1), values)
    assert not best.offer(2, Score(1.0, 0.0, 1), values), "an equal loss is not lower"
    assert not best.offer(3, Score(0.5, 0.0, 1), {"a": torch.ones(2)})
    assert not best.offer(4, Score(0.7, 0.0, 1), values)
    best.save(tmp_path)
    after = Best(patience=2)
    after.load(tmp_path)
    assert after.offer(5, Score(0.6, 0.0, 1), values)
    after.restore(values)
    assert values["a"].tolist() == [1.0, 1.0]
    assert (after.step, after.score) == (3, Score(0.5, 0.0, 1))


def test_the_parts_of_the_best_score_survive_too(tmp_path: Path) -> None:
    parts = (Part("a.jsonl", Score(0.25, 1.0, 3)), Part("b.jsonl", Score(0.1 + 0.2, 0.5, 4)))
    best = Best(patience=2)
    best.offer(1, Score(0.3, 0.75, 7, parts), {"a": torch.zeros(1)})
    best.save(tmp_path)
    after = Best(patience=2)
    after.load(tmp_path)
    assert after.score == Score(0.3, 0.75, 7, parts)


def test_early_stopping_without_evaluations_is_refused(deep_base: AddedBase, make_config: MakeConfig) -> None:
    with pytest.raises(InvalidInputError, match=r"training\.eval_every"):
        make_config(deep_base, "lora", {"r": 4}, early_stopping_patience=2)
    config = make_config(deep_base, "lora", {"r": 4}, early_stopping_patience=2, eval_every=1)
    with pytest.raises(InvalidInputError, match=r"data\.eval"):
        replace(config, data=replace(config.data, eval_fraction=0.0))


def test_a_run_that_diverges_says_so_and_leaves_no_artifact(
    deep_base: AddedBase, make_config: MakeConfig, run: Run
) -> None:
    config = make_config(deep_base, "lora", {"r": 4}, learning_rate=1e30, max_grad_norm=0.0, warmup=0.0)
    with pytest.raises(PreconditionError, match=r"at step \d.*training\.learning_rate \(now 1e\+30\)"):
        run(config, deep_base)
    assert not config.output.exists()


def test_after_divergence_the_last_good_checkpoint_is_there_and_no_bad_one(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    forward = AdaptedModel.forward

    def spoiled(self: AdaptedModel, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        nonlocal calls
        calls += 1
        loss = forward(self, **batch)["loss"]
        return {"loss": loss * float("nan") if calls == 5 else loss}

    monkeypatch.setattr(AdaptedModel, "forward", spoiled)
    config = make_config(deep_base, "lora", {"r": 4}, save_every=2)
    with pytest.raises(PreconditionError, match=r"at step 5: the loss is nan \(it was .* at step 4\).*checkpoint-4 is"):
        run(config, deep_base)
    state = load_file(str(checkpoints.newest(config.checkpoints) / "trainable.safetensors"))  # type: ignore[operator]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values())


def test_gradients_that_are_not_finite_stop_the_run_before_they_are_applied(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = AdaptedModel.forward

    def spoiled(self: AdaptedModel, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        # A finite loss whose gradient is infinite: the slope of the square root at zero.
        weight = next(parameter for name, parameter in self.trainable().items() if "lora_B" in name)
        return {"loss": forward(self, **batch)["loss"] + (weight * 0).abs().sum().sqrt()}

    monkeypatch.setattr(AdaptedModel, "forward", spoiled)
    with pytest.raises(PreconditionError, match="at step 1: the norm of the gradients is"):
        run(make_config(deep_base, "lora", {"r": 4}), deep_base)


def test_a_held_out_loss_that_is_no_number_ends_the_run(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure(monkeypatch, iter([float("nan")]))
    with pytest.raises(PreconditionError, match="at step 2: the held-out loss is nan"):
        run(make_config(deep_base, "lora", {"r": 4}, eval_every=2), deep_base)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:130] DefaultCPUAllocator: can't allocate memory: you tried 1 TB"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    ],
)
def test_running_out_of_memory_says_what_to_lower_and_from_what(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def exhausted(self: AdaptedModel, **_batch: torch.Tensor) -> dict[str, torch.Tensor]:
        raise error

    monkeypatch.setattr(AdaptedModel, "forward", exhausted)
    config = make_config(deep_base, "lora", {"r": 4}, dense_base=True)
    with pytest.raises(ExhaustedError) as caught:
        run(config, deep_base)
    text = caught.value.message
    assert "training.batch_size=4 with training.gradient_accumulation=2 (now 8 and 1" in text
    assert "training.gradient_checkpointing=true" in text
    assert "training.dense_base=false" in text
    assert "training.dtype=bfloat16 (now float32)" in text
    assert "data.max_length (now 512; the longest example has " in text


def test_other_errors_are_not_taken_for_memory(make_config: MakeConfig, deep_base: AddedBase) -> None:
    config = make_config(deep_base, "lora", {"r": 4})
    with pytest.raises(RuntimeError, match="shapes"), memory.explaining_out_of_memory(config, 10):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    smallest = replace(config, training=replace(config.training, batch_size=1, gradient_checkpointing=True))
    assert "batch_size" not in memory.advice(smallest, 10, "here")
    assert json.dumps(memory.advice(smallest, 10, "here")).count("now") == 2
