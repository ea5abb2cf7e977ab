from __future__ import annotations

import json
import math
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_models import AddedBase
from tests.trainer.oracles import BATCH, LABELS, dense_model
from tests.trainer.prompts import save_prompt
from tests.trainer.results import resumed
from weft_registry import artifact
from weft_registry import digest as digests
from weft_registry.errors import InvalidInputError, NotFoundError, WeftError
from weft_trainer.config import run as configs
from weft_trainer.config.adapter import LoraOptions
from weft_trainer.config.objective import DistillOptions
from weft_trainer.config.strict import ConfigError
from weft_trainer.data.batches import PackedBatches, TokenBatches
from weft_trainer.data.dataset import Example
from weft_trainer.methods import METHODS
from weft_trainer.modeling.adapted import BareModel
from weft_trainer.modeling.base import build
from weft_trainer.objectives.distill import (
    Distillation,
    TaughtBatches,
    Top,
    cache_targets,
    divergence,
    teacher_logits,
    top_divergence,
)
from weft_trainer.progress import QuietReporter

Make = Callable[..., configs.TrainConfig]
Run = Callable[[configs.TrainConfig, AddedBase], Path]


@pytest.fixture
def large_base(tiny_base: Callable[..., AddedBase]) -> AddedBase:
    """A teacher of another width and depth, with the same tokenizer."""
    return tiny_base("llama", hidden_size=128, num_hidden_layers=3, seed=7)


def distilling(config: configs.TrainConfig, teacher: str, **options: Any) -> configs.TrainConfig:
    """The same run with a teacher."""
    document = config.as_json() | {"objective": {"kind": "distill", "teacher": teacher, **options}}
    return configs.parse(document)


def loop(student: Tensor, teacher: Tensor, tokens: Tensor, t: float, w: float, k: int | None) -> float:
    """The mean loss, one number after another in float64."""
    total = 0.0
    for z, v, token in zip(student.double().tolist(), teacher.double().tolist(), tokens.tolist(), strict=True):
        p, q = [math.exp(x / t) for x in v], [math.exp(x / t) for x in z]
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        if k is not None:
            kept = sorted(range(len(p)), key=lambda i: -p[i])[:k]
            p = [*(p[i] for i in kept), 1 - sum(p[i] for i in kept)]
            q = [*(q[i] for i in kept), 1 - sum(q[i] for i in kept)]
        soft = sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
        hard = -z[token] + math.log(sum(math.exp(x) for x in z))
        total += (1 - w) * hard + w * t * t * soft
    return total / len(tokens)


@pytest.mark.parametrize("weight", [0.3, 1.0])
@pytest.mark.parametrize("top_k", [None, 1, 5])
def test_the_loss_is_that_of_a_loop_in_float64(top_k: int | None, weight: float) -> None:
    student, teacher = 2 * torch.randn(4, 30), 2 * torch.randn(4, 30)
    tokens = torch.tensor([3, 0, 29, 7])
    found = ce_and_soft(student, teacher, tokens, 1.7, weight, top_k) / 4
    assert float(found) == pytest.approx(loop(student, teacher, tokens, 1.7, weight, top_k), rel=1e-5)


def ce_and_soft(
    student: Tensor, teacher: Tensor, tokens: Tensor, temperature: float, weight: float, top_k: int | None
) -> Tensor:
    """The objective's own sum, for logits that are given."""
    said = {} if top_k is None else said_by(Top.of(teacher.float(), top_k, temperature))
    speaker: Any = None if top_k is not None else Speaker(teacher)
    batch = {"labels": torch.zeros(1, 1, dtype=torch.int64), "input_ids": tokens, **said}
    return Distillation(temperature, weight, speaker).total(student, tokens, batch)


def said_by(top: Top) -> dict[str, Tensor]:
    return {"teacher_top_ids": top.ids_Ck.int(), "teacher_top_logps": top.logps_Ck, "teacher_rest_logp": top.rest_C}


class Speaker:
    """A teacher whose logits are given."""

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits

    def completion_logits(self, batch: object) -> tuple[Tensor, Tensor]:
        return self._logits, torch.zeros(0)


@pytest.mark.parametrize("top_k", [None, 4])
def test_the_gradient_is_that_of_small_differences_in_float64(top_k: int | None) -> None:
    student = torch.randn(2, 9, requires_grad=True)
    teacher, tokens = torch.randn(2, 9), torch.tensor([4, 8])
    ce_and_soft(student, teacher, tokens, 2.0, 0.6, top_k).backward()
    assert student.grad is not None
    step, values = 1e-5, student.detach().double()
    for row in range(2):
        for column in range(9):
            up, down = values.clone(), values.clone()
            up[row, column] += step
            down[row, column] -= step
            slope = loop(up, teacher, tokens, 2.0, 0.6, top_k) - loop(down, teacher, tokens, 2.0, 0.6, top_k)
            assert float(student.grad[row, column]) == pytest.approx(2 * slope / (2 * step), abs=2e-5)


def test_a_rest_of_next_to_no_mass_leaves_a_finite_loss_and_gradient() -> None:
    student = torch.randn(1, 8, requires_grad=True)
    teacher = torch.tensor([[500.0, 400.0] + [0.0] * 6])
    loss = top_divergence(student, Top.of(teacher, 2, 1.0), 1.0).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert float(loss.detach()) == pytest.approx(float(divergence(student, teacher, 1.0).detach()), rel=1e-5)


def test_the_teacher_is_the_stored_base_as_transformers_computes_it(large_base: AddedBase) -> None:
    teacher = BareModel(build(large_base.stored, torch.float32))
    found = teacher_logits(teacher, {**BATCH, "labels": LABELS})
    with torch.no_grad():
        whole_BTV = dense_model(large_base)(**BATCH).logits
    expected = whole_BTV[:, :-1][LABELS[:, 1:] != -100]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


EXAMPLES = (
    Example((5, 9, 200, 31, 2), 3),
    Example((4, 60, 61, 62, 2), 1),
    Example((7, 8, 9, 10, 11, 12, 2), 5, ((2, 3),)),
)


@pytest.mark.parametrize("rows", [None, [(2, 0), (1,)]], ids=["apart", "packed"])
def test_targets_that_are_kept_are_those_of_a_teacher_that_runs_beside(
    deep_base: AddedBase, large_base: AddedBase, rows: list[tuple[int, ...]] | None, tmp_path: Path
) -> None:
    teacher = BareModel(build(large_base.stored, torch.float32))
    student = METHODS["lora"].bare(build(deep_base.stored, torch.float32), lora_params(deep_base))
    tokens = TokenBatches(EXAMPLES, 2)
    make: Any = tokens if rows is None else PackedBatches(tokens, rows)
    kept = cache_targets(teacher, EXAMPLES, 2, 6, 1.5, tmp_path, QuietReporter())
    batch = TaughtBatches(make, make, kept, rows)(list(range(2)))
    logits_CV, reference_C = student.completion_logits(batch)
    found = Distillation(1.5, 0.5, None).total(logits_CV, reference_C, batch)
    beside = Top.of(teacher_logits(teacher, make(list(range(2)))), 6, 1.5)
    expected = Distillation(1.5, 0.5, None).total(logits_CV, reference_C, batch | said_by(beside))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def lora_params(base: AddedBase) -> Any:
    encoder: Any = None
    return METHODS["lora"].params(LoraOptions(), base.stored.spec, encoder)


OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4},
    "dora": {"r": 4},
    "ia3": {},
    "qalora": {"r": 2, "layers": "top:2"},
    "prefix": {"num_virtual_tokens": 4},
    "prompt_tuning": {"num_virtual_tokens": 4},
    "pfeiffer": {},
    "full": {"extract": {"rank": 4}},
}


# The loss knows no method: each is enough once, with a teacher that runs beside or one that spoke before.
@pytest.mark.parametrize(("method", "top_k"), list(zip(OPTIONS, [None, 8] * 4, strict=True)))
def test_every_method_learns_from_a_teacher(
    deep_base: AddedBase, large_base: AddedBase, make_config: Make, run: Run, method: str, top_k: int | None
) -> None:
    rate = {"full": 1e-3, "ia3": 3e-2, "prefix": 1e-1, "prompt_tuning": 1e-1}.get(method, 1e-2)
    # All 32 examples in every step: the loss falls for no other reason than learning.
    config = make_config(
        deep_base, method, OPTIONS[method], steps=8, save_every=8, batch_size=32, learning_rate=rate, warmup=0
    )
    config = distilling(config, large_base.name, weight=1.0, top_k=top_k)
    manifest = artifact.read(run(config, deep_base))
    lines = [json.loads(line) for line in (config.checkpoints / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.98 * losses[0]
    spec = large_base.stored.spec.fingerprint
    said = manifest.provenance["objective"]
    assert said == {"kind": "distill", "teacher": {"id": spec.id, "weights_sha256": spec.weights_sha256}}
    assert manifest.provenance["parent_version"] is None, "a base is no version"


def test_the_layers_that_are_computed_once_change_nothing_of_what_is_learnt(
    deep_base: AddedBase, large_base: AddedBase, make_config: Make, run: Run
) -> None:
    losses = []
    for layers in ("top:2", "all"):
        # With a rank pattern that leaves the lower layers out, the second run adapts the same ones without a cache.
        config = make_config(deep_base, "qalora", {"r": 2, "layers": layers}, steps=1, save_every=1)
        run(distilling(config, large_base.name), deep_base)
        losses.append(json.loads((config.checkpoints / "log.jsonl").read_text().splitlines()[0])["loss"])
    # Before the first step both are the base, whose loss beside the teacher is one number.
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_packed_rows_learn_from_a_teacher(
    deep_base: AddedBase, large_base: AddedBase, make_config: Make, run: Run
) -> None:
    found = []
    for packing in (False, True):
        document = make_config(deep_base, "lora", steps=1, batch_size=32, save_every=1).as_json()
        document["data"] |= {"packing": packing, "max_length": 4096, "eval_fraction": 0}
        document["training"] |= {"batch_size": 40 if not packing else 1}
        config = distilling(configs.parse(document), large_base.name, top_k=4)
        run(config, deep_base)
        found.append(json.loads((config.checkpoints / "log.jsonl").read_text().splitlines()[0])["loss"])
    # All 40 examples fit one row: the step is over the same tokens.
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize("merged", [False, True])
def test_the_same_base_teaches_when_it_wears_an_adapter(
    deep_base: AddedBase, make_config: Make, run: Run, tmp_path: Path, merged: bool
) -> None:
    teaching = run(make_config(deep_base, "lora", {"r": 8}, steps=30), deep_base).rename(tmp_path / "teacher")
    config = make_config(deep_base, "ia3", steps=20, learning_rate=3e-2)
    config = distilling(config, f"{deep_base.name}+{teaching}", weight=1.0, merged=merged)
    manifest = artifact.read(run(config, deep_base))
    said = manifest.provenance["objective"]["teacher"]
    assert said["artifact"] == manifest.provenance["parent_version"] == artifact.read(teaching).digest()
    assert said["merged"] is merged
    losses = {metric.name: float(metric.value) for metric in manifest.metrics}
    # It has seen no label, and comes nearer to them through the teacher alone.
    assert losses["loss"] < base_loss(deep_base, make_config, run)


def test_a_run_does_not_go_on_with_another_teacher_in_the_same_place(
    deep_base: AddedBase, make_config: Make, run: Run, tmp_path: Path
) -> None:
    place = tmp_path / "teacher"

    def teach(steps: int) -> None:
        shutil.rmtree(place, ignore_errors=True)
        run(make_config(deep_base, "lora", {"r": 8}, steps=steps), deep_base).rename(place)

    teach(3)
    config = distilling(make_config(deep_base, "ia3", steps=4, save_every=2), f"{deep_base.name}+{place}")
    run(config, deep_base)
    shutil.copytree(place, tmp_path / "copy")
    teach(2)
    with pytest.raises(InvalidInputError, match=r"of another run: objective\.teacher changed"):
        run(resumed(config), deep_base)
    copy = distilling(config, f"{deep_base.name}+{tmp_path / 'copy'}")
    run(resumed(copy), deep_base)


def base_loss(base: AddedBase, make_config: Make, run: Run) -> float:
    manifest = artifact.read(run(make_config(base, "lora", steps=1, learning_rate=1e-9), base))
    return next(float(metric.value) for metric in manifest.metrics if metric.name == "loss")


def test_a_teacher_that_cannot_teach_is_refused_by_name(
    deep_base: AddedBase,
    large_base: AddedBase,
    tiny_base: Callable[..., AddedBase],
    make_config: Make,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_config(deep_base, "lora")

    def refused(teacher: str, says: str, error: type[Exception] = InvalidInputError, **options: Any) -> None:
        with pytest.raises(error, match=says) as caught:
            run(distilling(config, teacher, **options), deep_base)
        # One of several training processes sends it to the one that started them.
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)

    refused(deep_base.name, "is the student's own base")
    refused("nobody", r"^objective\.teacher: no base model 'nobody'", NotFoundError)
    nothing = tmp_path / "nothing"
    refused(f"{large_base.name}+{nothing}", rf"^objective\.teacher: no artifact directory at {nothing}", NotFoundError)
    refused(f"{large_base.name}+{config.output}", r"^objective\.teacher: no artifact directory", NotFoundError)
    refused(large_base.name, r"objective\.top_k: 512, but the vocabulary has 512", top_k=512)
    wide = tiny_base("llama", vocab_size=544)
    refused(wide.name, "has 544 logits")
    real = digests.of_file
    monkeypatch.setattr(digests, "of_file", lambda path: "sha256:other" if large_base.name in str(path) else real(path))
    refused(large_base.name, f"{large_base.name} has another tokenizer than {deep_base.name}")


def test_a_teacher_that_cannot_wear_its_adapter_is_refused_before_the_data_is_read(
    deep_base: AddedBase, large_base: AddedBase, make_config: Make, run: Run, tmp_path: Path
) -> None:
    worn = save_prompt(deep_base, tmp_path / "wide", room=9)
    config = make_config(deep_base, "lora", {"r": 4}, steps=1)
    unread = replace(config, data=replace(config.data, train=tmp_path / "none.jsonl"))

    def refused(config: configs.TrainConfig, base: AddedBase, says: str, **options: Any) -> str:
        with pytest.raises(WeftError, match=says) as caught:
            run(distilling(config, f"{base.name}+{worn}", **options), deep_base)
        assert str(pickle.loads(pickle.dumps(caught.value))) == caught.value.message
        return caught.value.message

    refused(unread, large_base, rf"^objective\.teacher: {worn} was made for .*: write its own base before the \+$")
    refused(unread, deep_base, r"^objective\.merged: a soft prompt cannot be merged: .*; leave it out$", merged=True)
    refused(unread, deep_base, r"none\.jsonl")
    # What it has not room for only the data tells.
    context = deep_base.stored.spec.context_length
    longest = r"^objective\.teacher: the longest example has \d+ tokens, and the context of "
    room = f"{deep_base.name}\\+{worn} holds 9 after {context - 9} virtual tokens; set data.max_length to 9, or take a "
    refused(config, deep_base, longest + room)


def test_a_teacher_with_a_short_context_is_refused_by_the_longest_example(
    deep_base: AddedBase, tiny_base: Callable[..., AddedBase], make_config: Make, run: Run
) -> None:
    short = tiny_base("llama", max_position_embeddings=16)
    config = distilling(make_config(deep_base, "lora", {"r": 4}, steps=1), short.name)
    with pytest.raises(ConfigError, match=rf"and the context of {short.name} holds 16; set data.max_length to 16, or"):
        run(config, deep_base)
    assert run(replace(config, data=replace(config.data, max_length=16)), deep_base)


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ({"kind": "distill"}, "objective.teacher: missing"),
        ({"kind": "distil", "teacher": "a"}, "objective.kind: 'distil' is not one of.*nearest: distill"),
        ({"kind": "distill", "teacher": "a", "temperature": 0}, "objective.temperature: 0.0, but it must be above 0"),
        ({"kind": "distill", "teacher": "a", "weight": 0}, "objective.weight: 0.0, but it must be above 0"),
        ({"kind": "distill", "teacher": "a", "beta": 0.1}, "objective.beta: unknown key"),
        ({"kind": "distill", "teacher": "a+"}, "is no BASE or BASE"),
        ({"kind": "distill", "teacher": "a", "merged": True}, "wears no artifact"),
        ("distill", "expected a mapping with a kind"),
    ],
)
def test_a_wrong_objective_is_refused_by_its_key(block: Any, says: str) -> None:
    document = {"base": "b", "method": "lora", "output": "o", "data": {"train": "t.jsonl"}, "objective": block}
    with pytest.raises(InvalidInputError, match=says):
        configs.parse(document)


def test_the_objective_survives_printing_and_loading(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "base: b\nmethod: lora\noutput: o\ndata: {train: t.jsonl}\nobjective: {kind: distill, teacher: big}\n"
    )
    config = configs.load(path, ["objective.top_k=32"])
    assert config.objective == DistillOptions("big", top_k=32)
    path.write_text(config.as_yaml())
    assert configs.load(path) == config
