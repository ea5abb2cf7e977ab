from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny_models import AddedBase
from weft_registry import artifact as artifacts
from weft_registry import digest as digests
from weft_registry.errors import InvalidInputError
from weft_trainer.config import run as configs
from weft_trainer.config.run import PACKABLE, TrainConfig
from weft_trainer.data.batches import IGNORE, PackedBatches, TokenBatches
from weft_trainer.data.dataset import Example
from weft_trainer.data.mixing import mixture
from weft_trainer.data.packing import pack, plan
from weft_trainer.data.tokenization import BaseTokenizer
from weft_trainer.methods import METHODS
from weft_trainer.modeling.adapted import AdaptedModel
from weft_trainer.modeling.base import build
from weft_trainer.modeling.cached_layers import cache_states
from weft_trainer.progress import QuietReporter

Run = Callable[[TrainConfig, AddedBase], Path]
PAD = 2
PREFIX = {"num_virtual_tokens": 3}
OPTIONS: dict[str, dict[str, Any]] = {
    "galore": {"rank": 16},
    "qalora": {"r": 2},
    "prefix": PREFIX,
    "prompt_tuning": PREFIX,
    "p_tuning": PREFIX,
    "p_tuning_v2": PREFIX,
    "partial": {"unfreeze": ["model.layers.3.*"]},
}


def examples(count: int, seed: int = 0) -> list[Example]:
    """Of random tokens and lengths; every third has an earlier answer inside its prompt."""
    generator = random.Random(seed)
    found = []
    for number in range(count):
        prompt, answer = generator.randint(4, 9), generator.randint(1, 6)
        ids = tuple(generator.randrange(3, 500) for _ in range(prompt + answer))
        found.append(Example(ids, prompt, ((1, 3),) if number % 3 == 0 else ()))
    return found


def adapted(base: AddedBase, method: str, attention: str, first: int = 0) -> AdaptedModel:
    """The method on the base, with parameters that are no identity."""
    options = configs.parse(
        {
            "base": base.name,
            "method": method,
            "output": "o",
            "data": {"train": "t"},
            "adapter": OPTIONS.get(method, {})
            | ({"layers": f"top:{base.stored.spec.num_layers - first}"} if first else {}),
        }
    ).adapter
    encoder = BaseTokenizer(base.stored.tokenizer_dir)
    made = METHODS[method]
    params = made.params(options, base.stored.spec, encoder)
    layers = range(first, base.stored.spec.num_layers)
    model = made.attach(build(base.stored, torch.float32, layers=layers, attention=attention), params, options, encoder)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return model.eval()


def alone(model: AdaptedModel, given: Sequence[Example]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Sum of the losses of every example by itself over all their learnt tokens, and its gradients: the oracle."""
    tokens = sum(example.completion_length for example in given)
    model.zero_grad()
    total = torch.zeros(())
    for index in range(len(given)):
        total = total + model(**TokenBatches(given, PAD)([index]), num_items_in_batch=tokens)["loss"]
    total.backward()
    return total.detach(), {name: p.grad.clone() for name, p in model.trainable().items() if p.grad is not None}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", PACKABLE)
def test_the_loss_and_gradients_of_packed_rows_are_those_of_their_examples_alone(
    deep_base: AddedBase, method: str, attention: str
) -> None:
    model, given = adapted(deep_base, method, attention), examples(9)
    wanted, gradients = alone(model, given)
    assert gradients
    model.zero_grad()
    batch = PackedBatches(TokenBatches(given, PAD), [[4, 0, 7, 1], [8], [2, 3, 5, 6]])([0, 1, 2])
    found = model(**batch)["loss"]
    found.backward()
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    for name, parameter in model.trainable().items():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("arch", ["mistral", "qwen2", "qwen3"])
def test_every_architecture_keeps_packed_examples_apart(tiny_base: Callable[..., AddedBase], arch: str) -> None:
    model, given = adapted(tiny_base(arch), "lora", "sdpa"), examples(6)
    wanted, _ = alone(model, given)
    found = model(**PackedBatches(TokenBatches(given, PAD), [[5, 4, 3], [0, 1, 2]])([0, 1]))["loss"]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_without_the_mask_the_loss_would_be_another(deep_base: AddedBase) -> None:
    model, given = adapted(deep_base, "lora", "sdpa"), examples(6)
    wanted, _ = alone(model, given)
    batch = PackedBatches(TokenBatches(given, PAD), [[5, 4, 3], [0, 1, 2]])([0, 1])
    naive = {key: value for key, value in batch.items() if key not in ("segment_ids", "position_ids")}
    with torch.no_grad():
        assert abs(float(model(**naive)["loss"] - wanted)) > 1e-3


def test_cached_states_pack_to_the_same_loss(deep_base: AddedBase, tmp_path: Path) -> None:
    given = examples(6)
    (cached,) = cache_states(deep_base.stored, 2, torch.float32, [given], PAD, tmp_path, QuietReporter())
    upper = adapted(deep_base, "qalora", "sdpa", first=2)
    rows = [[5, 4, 3], [0, 1, 2]]
    with torch.no_grad():
        apart = upper(**cached(range(6)))["loss"]
        packed = upper(**PackedBatches(cached, rows)([0, 1]))["loss"]
    torch.testing.assert_close(packed, apart, atol=1e-5, rtol=1e-5)


def test_positions_and_labels_restart_with_each_example() -> None:
    given = [Example((5, 6, 7), 2), Example((8, 9, 10, 11), 3, ((1, 2),))]
    batch = PackedBatches(TokenBatches(given, PAD), [[0, 1], [0]])([0, 1])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 10, 11], [5, 6, 7, PAD, PAD, PAD, PAD]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3], [0, 1, 2, 0, 0, 0, 0]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 0, 0, 0, 0]]
    none = IGNORE
    assert batch["labels"].tolist() == [[none, none, 7, none, 9, none, 11], [none, none, 7, *[none] * 4]]
    assert batch["attention_mask"].sum(1).tolist() == [7, 3]


def test_rows_hold_every_example_once_and_never_too_much() -> None:
    generator = random.Random(0)
    lengths = [generator.randint(1, 40) for _ in range(500)]
    rows = pack(range(500), lengths, 64, random.Random(1))
    assert Counter(index for row in rows for index in row) == Counter(range(500))
    sizes = [sum(lengths[index] for index in row) for row in rows]
    assert max(sizes) <= 64
    assert sum(sizes) / (64 * len(rows)) > 0.98, "best fit leaves little room"
    assert pack(range(500), lengths, 64, random.Random(2)) != rows


@pytest.mark.parametrize("capacity", [None, 20])
def test_a_plan_reads_whole_epochs_or_as_many_steps_as_said(capacity: int | None) -> None:
    mixed, lengths = mixture([10, 20]), [5] * 30
    made = plan(mixed, lengths, capacity, 0, rows_per_step=4, steps=None, epochs=2.5)
    counts = Counter(index for row in made.rows for index in row)
    assert (sum(counts.values()), set(counts.values())) == (75, {2, 3})
    assert made.steps == -(-len(made.rows) // 4)
    assert made.rows == plan(mixed, lengths, capacity, 0, rows_per_step=4, steps=None, epochs=2.5).rows
    fixed = plan(mixed, lengths, capacity, 0, rows_per_step=4, steps=20, epochs=3.0)
    assert (len(fixed.rows), fixed.steps) == (80, 20)


def test_a_packed_run_learns_the_task_in_fewer_rows(
    deep_base: AddedBase, make_config: Callable[..., TrainConfig], run: Run
) -> None:
    config = make_config(deep_base, "lora", {"r": 4}, steps=None, epochs=40.0, batch_size=4)
    config = replace(config, data=replace(config.data, packing=True, max_length=128))
    manifest = artifacts.read(run(config, deep_base))
    assert manifest.provenance["steps"] < 40 * 32 / 4 / 2, "several examples a row"
    assert float(next(m.value for m in manifest.metrics if m.name == "exact_match")) >= 0.75


def test_a_resumed_packed_run_ends_where_an_uninterrupted_one_does(
    deep_base: AddedBase, make_config: Callable[..., TrainConfig], run: Run
) -> None:
    config = make_config(deep_base, "lora", {"r": 4}, save_every=3, batch_size=2)
    config = replace(config, data=replace(config.data, packing=True, max_length=64))
    whole = load_file(str(run(config, deep_base) / artifacts.WEIGHTS))
    shutil.rmtree(config.output)
    shutil.rmtree(config.checkpoints / "checkpoint-6")
    again = load_file(
        str(run(replace(config, training=replace(config.training, resume=True)), deep_base) / artifacts.WEIGHTS)
    )
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_a_base_that_sees_less_far_than_an_example_is_long_is_not_packed(
    tiny_base: Callable[..., AddedBase], make_config: Callable[..., TrainConfig], run: Run
) -> None:
    base = tiny_base("mistral", sliding_window=32)
    config = make_config(base, "lora", {"r": 4})
    packed = replace(config, data=replace(config.data, packing=True, max_length=64))
    with pytest.raises(InvalidInputError, match=r"data\.packing: layers of this base see 32 tokens back"):
        run(packed, base)


def test_files_are_mixed_by_weight_and_the_manifest_says_so(
    deep_base: AddedBase, make_config: Callable[..., TrainConfig], run: Run, task_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"prompt": f"say {i}", "completion": " no"}) + "\n" for i in range(20)))
    config = make_config(deep_base, "lora", {"r": 4}, eval_every=3)
    plain = config.as_json()
    plain["data"] |= {
        "train": [
            {"path": str(task_file), "weight": 3},
            {"path": str(other), "weight": 1, "eval_fraction": 0.5},
        ],
        "eval_fraction": 0.2,
    }
    config = configs.parse(plain)
    manifest = artifacts.read(run(config, deep_base))
    found = [(d["split"], d["examples"], d.get("weight"), d["sha256"]) for d in manifest.provenance["datasets"]]
    first, second = digests.of_file(task_file), digests.of_file(other)
    assert found == [
        ("train", 32, repr(32 / 42), first),
        ("train", 10, repr(10 / 42), second),
        ("eval", 8, None, first),
        ("eval", 10, None, second),
    ]
    assert {m.name: m.value for m in manifest.metrics if m.name.startswith("examples")} == {
        "examples": "18",
        f"examples[{task_file}]": "8",
        f"examples[{other}]": "10",
    }
