from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers.trainer_optimizer import _OPTIMIZER_HANDLERS

from tests.tiny_models import AddedBase
from weft_registry import artifact as artifacts
from weft_registry.errors import InvalidInputError, PreconditionError
from weft_trainer.config.run import OPTIMIZERS, TrainConfig
from weft_trainer.training import optimizers

MakeConfig = Callable[..., TrainConfig]
Run = Callable[[TrainConfig, AddedBase], Path]


def chosen(config: TrainConfig, optimizer: str) -> TrainConfig:
    return replace(config, training=replace(config.training, optimizer=optimizer))


def test_every_optimizer_is_one_that_transformers_knows(make_config: MakeConfig, deep_base: AddedBase) -> None:
    known = {str(getattr(name, "value", name)) for name in _OPTIMIZER_HANDLERS}
    assert set(OPTIMIZERS) - {"adamw"} <= known
    assert set(optimizers._NEEDS) <= set(OPTIMIZERS)


@pytest.mark.parametrize(
    ("optimizer", "package"),
    [
        ("paged_adamw_8bit", "bitsandbytes"),
        ("paged_lion_32bit", "bitsandbytes"),
        ("adamw_torch_8bit", "torchao"),
        ("grokadamw", "grokadamw"),
        ("stable_adamw", "torch-optimi"),
    ],
)
def test_an_optimizer_whose_package_is_missing_is_refused_with_what_to_install(
    make_config: MakeConfig, deep_base: AddedBase, monkeypatch: pytest.MonkeyPatch, optimizer: str, package: str
) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda _name: None)
    with pytest.raises(PreconditionError, match=f"{optimizer} needs.*pip install {package}"):
        optimizers.optim_name(make_config(deep_base, "lora", optimizer=optimizer))


def test_a_paged_optimizer_without_a_gpu_is_refused(
    make_config: MakeConfig, deep_base: AddedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda _name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(PreconditionError, match="paged_adamw_8bit runs on a GPU"):
        optimizers.optim_name(make_config(deep_base, "lora", optimizer="paged_adamw_8bit"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert optimizers.optim_name(make_config(deep_base, "lora", optimizer="paged_adamw_8bit")) == "paged_adamw_8bit"


def test_it_is_refused_before_the_base_is_looked_for(
    make_config: MakeConfig, deep_base: AddedBase, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda _name: None)
    config = replace(make_config(deep_base, "lora", optimizer="paged_adamw_8bit"), base="nobody")
    with pytest.raises(PreconditionError, match="bitsandbytes"):
        run(config, deep_base)


def test_galore_is_pointed_to_its_method(make_config: MakeConfig, deep_base: AddedBase) -> None:
    with pytest.raises(InvalidInputError, match="method: galore"):
        optimizers.optim_name(make_config(deep_base, "lora", optimizer="galore_adamw"))


def test_an_unknown_optimizer_is_answered_with_the_nearest(make_config: MakeConfig, deep_base: AddedBase) -> None:
    with pytest.raises(InvalidInputError, match="nearest: paged_adamw_8bit"):
        make_config(deep_base, "lora", optimizer="paged_adam_8bit")


@pytest.mark.parametrize("optimizer", ["adafactor", "sgd", "adagrad", "rmsprop"])
def test_torchs_own_optimizers_train_and_differ(
    make_config: MakeConfig, deep_base: AddedBase, run: Run, optimizer: str
) -> None:
    config = make_config(deep_base, "lora", {"r": 2, "layers": "top:1"}, steps=2)
    plain = artifacts.read(run(config, deep_base)).tensors
    other = artifacts.read(run(chosen(config, optimizer), deep_base)).tensors
    assert plain != other


def test_adamw_is_torchs_fused_one(make_config: MakeConfig, deep_base: AddedBase, run: Run) -> None:
    config = make_config(deep_base, "lora", {"r": 2, "layers": "top:1"}, steps=2)
    plain = artifacts.read(run(config, deep_base)).tensors
    assert artifacts.read(run(chosen(config, "adamw_torch_fused"), deep_base)).tensors == plain
