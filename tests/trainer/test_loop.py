from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny_models import AddedBase
from weft_registry import artifact as artifacts
from weft_registry.errors import InvalidInputError, NotFoundError, PreconditionError
from weft_trainer.config import TrainConfig

Run = Callable[[TrainConfig, AddedBase], Path]
METHODS = {
    "lora": {"r": 4, "dropout": 0.2},
    "qalora": {"r": 4, "dropout": 0.2, "layers": "top:2"},
    "prefix": {"num_virtual_tokens": 4, "prefix_projection": True},
}


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(str(directory / artifacts.WEIGHTS))


def resumed(config: TrainConfig) -> TrainConfig:
    return replace(config, training=replace(config.training, resume=True))


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_ends_bit_for_bit_where_an_uninterrupted_one_does(
    deep_base: AddedBase, make_config: Callable[..., TrainConfig], run: Run, method: str
) -> None:
    config = make_config(deep_base, method, METHODS[method], save_every=3)
    whole = weights(run(config, deep_base))
    # What an interruption after step 3 leaves behind: no artifact, and the first checkpoint.
    shutil.rmtree(config.output)
    shutil.rmtree(config.checkpoints / "checkpoint-6")
    again = weights(run(resumed(config), deep_base))
    assert whole.keys() == again.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, again[name]), name


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


def test_a_fresh_run_does_not_keep_another_runs_checkpoints(
    deep_base: AddedBase, make_config: Callable[..., TrainConfig], run: Run
) -> None:
    config = make_config(deep_base, "lora", {"r": 4}, save_every=3)
    run(config, deep_base)
    run(replace(config, training=replace(config.training, steps=3)), deep_base)
    assert sorted(p.name for p in config.checkpoints.iterdir()) == ["checkpoint-3", "config.json"]
    shutil.rmtree(config.checkpoints)
    config.checkpoints.mkdir()
    (config.checkpoints / "thesis.md").touch()
    with pytest.raises(InvalidInputError, match="no checkpoints of ours"):
        run(config, deep_base)
    assert (config.checkpoints / "thesis.md").exists()


def test_accumulated_small_batches_train_like_one_large_batch(
    deep_base: AddedBase, make_config: Callable[..., TrainConfig], run: Run
) -> None:
    options = {"r": 4, "layers": "top:2"}
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


def test_a_run_that_diverges_says_so_and_leaves_no_artifact(
    deep_base: AddedBase, make_config: Callable[..., TrainConfig], run: Run
) -> None:
    config = make_config(deep_base, "lora", {"r": 4}, learning_rate=1e30, max_grad_norm=0.0, warmup=0.0)
    with pytest.raises(PreconditionError, match=r"training\.learning_rate"):
        run(config, deep_base)
    assert not config.output.exists()
