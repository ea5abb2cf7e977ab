"""Adapters trained on others that lie frozen below them, as MAD-X trains a task on a language."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.engines import Tracer
from tests.oracles.adapterhub_subjects import CASES, SHOWN, TOKENS
from tests.oracles.hub_base import add_hub_base, expected, hub_adapter
from tests.tiny_models import AddedBase
from tests.trainer.reporters import Heard
from tests.trainer.results import resumed, weights
from weft_adapters.kinds import KINDS
from weft_registry import artifact
from weft_registry.composition import parse_parts
from weft_registry.errors import InvalidInputError, PreconditionError
from weft_registry.home import Home
from weft_registry.reference import AdapterName, Reference
from weft_registry.transfer import open_registry, push
from weft_trainer import train as runs
from weft_trainer.config import run as configs
from weft_trainer.config.adapter import BottleneckOptions
from weft_trainer.config.run import TrainConfig
from weft_trainer.evaluate import evaluate
from weft_trainer.methods import METHODS, method_of_kind, over
from weft_trainer.methods.parts import Part
from weft_trainer.methods.start import find_start
from weft_trainer.methods.worn import bound, wear
from weft_trainer.modeling.base import build
from weft_trainer.progress import QuietReporter

MakeConfig = Callable[..., TrainConfig]
Run = Callable[[TrainConfig, AddedBase], Path]
STACKS = [name for name, case in CASES.items() if len(case.adapters) > 1 and not case.fusion]
TASK = {"bottleneck_size": 6, "layers": "top:2"}


def logits(model: Any) -> Tensor:
    """After each of `TOKENS`: (T, V)."""
    with torch.no_grad():
        ids = torch.tensor([TOKENS])
        states = model.hidden({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        found: Tensor = model.base.logits(states)[0]
    return found


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "language.jsonl"
    lines = [f"Der {word} Bericht kam am {day}. Tag an." for word in ("Markt", "Sport", "Film") for day in range(8)]
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


@pytest.fixture
def language(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, texts: Path, tmp_path: Path
) -> Callable[[str, int], str]:
    """Trains a language adapter on plain text and publishes it: its reference, by digest."""

    def language(name: str, seed: int) -> str:
        document = make_config(deep_base, "pfeiffer", {"bottleneck_size": 8}, seed=seed, steps=8).as_json()
        document["data"]["train"] = str(texts)
        directory = run(configs.parse(document), deep_base).rename(tmp_path / name)
        with closing(open_registry(deep_base.home)) as registry:
            digest = push(registry, directory, AdapterName("acme", name)).version.digest
        return f"acme/{name}@{digest}"

    return language


def loss(directory: Path | None, config: TrainConfig, home: Home, stack_on: list[str] | None = None) -> float:
    assert isinstance(config.data.train, Path)
    scored = evaluate(
        directory,
        config.data.train,
        QuietReporter(),
        base=config.base,
        dtype=torch.float32,
        stack_on=stack_on,
        home=home,
    )
    return scored.loss


@pytest.mark.parametrize("case", STACKS)
def test_a_stacks_logits_are_adapterhubs(case: str, tmp_path: Path) -> None:
    base = add_hub_base(tmp_path)
    *below, top = (hub_adapter(name) for name in CASES[case].adapters)
    parts = [Part(Reference(AdapterName("hub", "part"), digest=p.digest), p.bound(torch.float32)) for p in below]
    model = over(method_of_kind("bottleneck"), parts).bare(build(base.stored, torch.float32), top.params)
    model.restore(top.tensors)
    torch.testing.assert_close(logits(model.eval())[:, :SHOWN], expected(case), atol=2e-4, rtol=1e-4)
    assert model.export().keys() == top.tensors.keys()


def test_a_task_is_trained_on_a_language_and_served_on_it(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, language: Callable[[str, int], str]
) -> None:
    german, dutch = language("german", 1), language("dutch", 2)
    config = make_config(deep_base, "pfeiffer", {**TASK, "stack_on": ["acme/german"]}, steps=25, learning_rate=2e-2)
    config = replace(config, data=replace(config.data, eval=config.data.train, eval_fraction=0.1))
    heard = Heard()
    directory = runs.train(config, heard, deep_base.home)
    manifest = artifact.read(directory)
    assert f"over {german}" in heard.messages
    # The language is in the layers below the task's too, so those are not computed once and kept.
    assert any("layers from 0" in message for message in heard.messages)
    assert manifest.adapter["layers"] == [2, 3]
    assert manifest.provenance["stacked_on"] == [german]
    assert f'weft generate {german}+NAMESPACE/artifact:v1 "PROMPT"' in (directory / artifact.CARD).read_text()
    assert [part.reference for part in parse_parts(f"{german}+acme/artifact:v1")] == [german, "acme/artifact:v1"]

    # What training scored is the stack, and so is what is scored afterwards.
    scored = {metric.name: float(metric.value) for metric in manifest.metrics}
    on_german = loss(directory, config, deep_base.home)
    assert on_german == pytest.approx(scored["loss"], abs=2e-6)
    assert on_german == loss(directory, config, deep_base.home, [german])
    assert on_german < 0.5 * loss(None, config, deep_base.home)
    others = [loss(directory, config, deep_base.home, below) for below in ([], [dutch], [dutch, german])]
    assert min(abs(first - second) for first, second in combinations([on_german, *others], 2)) > 1e-3

    # What a server makes of `acme/german+acme/task`, in one batch with the task alone and the base.
    stored = deep_base.stored
    task, (part,) = bound(directory, stored, deep_base.home)
    stack = KINDS["bottleneck"].compose([(part.adapter, 1.0), (task, 1.0)], "sha256:" + "5" * 64)
    traced = Tracer(stored).run([TOKENS] * 3, [stack, task, None], 1)
    for trace, below in zip(traced[:2], ([german], []), strict=True):
        model = wear(stored, directory, torch.float32, deep_base.home, stack_on=below)
        torch.testing.assert_close(trace.logits_SV[0].float(), logits(model)[-1], atol=5e-4, rtol=1e-3)
    assert not torch.allclose(traced[0].logits_SV[0], traced[1].logits_SV[0], atol=1e-2)


def test_a_run_that_goes_on_from_a_stacked_adapter_is_stacked_as_it_was(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, language: Callable[[str, int], str], tmp_path: Path
) -> None:
    german = language("german", 1)
    config = make_config(deep_base, "pfeiffer", {**TASK, "stack_on": [german]})
    first = run(config, deep_base).rename(tmp_path / "first")
    document = {**config.as_json(), "start": str(first)}
    said = weights(run(configs.parse(document), deep_base))
    directory = run(configs.parse({**document, "adapter": None}), deep_base)
    assert artifact.read(directory).provenance["stacked_on"] == [german]
    assert all(torch.equal(tensor, said[name]) for name, tensor in weights(directory).items())


def test_what_a_start_was_stacked_on_is_not_looked_up_where_the_run_says_what_it_is_stacked_on(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, language: Callable[[str, int], str], tmp_path: Path
) -> None:
    german = language("german", 1)
    first = run(make_config(deep_base, "pfeiffer", {**TASK, "stack_on": [german]}), deep_base).rename(tmp_path / "x")
    with closing(open_registry(deep_base.home)) as registry:
        registry.yank(german, "withdrawn")
    start = find_start(str(first), tmp_path / "out", deep_base.home)
    method = METHODS["pfeiffer"]
    says = rf"start: {first}: stack_on: {german}: it is yanked \(withdrawn\): .* say in adapter\.stack_on what"
    with pytest.raises(PreconditionError, match=says):
        start.read(method, deep_base.stored)
    adapter, parts = start.read(method, deep_base.stored, stack_on=())
    assert (adapter.digest, list(parts)) == (artifact.read(first).digest(), [])


def test_what_a_part_was_itself_trained_on_is_asked_for_below_it(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, language: Callable[[str, int], str], tmp_path: Path
) -> None:
    german, dutch = language("german", 1), language("dutch", 2)
    first = run(make_config(deep_base, "pfeiffer", {**TASK, "stack_on": [german]}, steps=1), deep_base)
    upper = f"acme/upper={first.rename(tmp_path / 'upper')}"
    flat = run(make_config(deep_base, "pfeiffer", TASK, steps=1), deep_base).rename(tmp_path / "flat")
    named = rf"acme/upper@sha256:\w+ was trained on {german}: "

    def said(method: str, adapter: dict[str, Any]) -> list[str]:
        heard = Heard()
        runs.train(make_config(deep_base, method, adapter, steps=1), heard, deep_base.home)
        return [message for message in heard.messages if " was trained on " in message]

    assert said("pfeiffer", {"stack_on": [german, upper]}) == []
    for below in ([], [dutch]):
        (message,) = said("pfeiffer", {"stack_on": [*below, upper]})
        assert re.fullmatch(f"{named}name that before it, unless it is to lie on another", message)
    # Above it is not below it.
    assert len(said("pfeiffer", {"stack_on": [upper, german]})) == 1
    (message,) = said("fusion", {"parts": [f"acme/flat={flat}", upper]})
    assert re.fullmatch(f"{named}in a fusion nothing lies below it, and it reads what it was not trained on", message)


def test_scoring_a_stack_on_a_yanked_adapter_says_how_to_score_it_on_another(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, language: Callable[[str, int], str]
) -> None:
    german = language("german", 1)
    config = make_config(deep_base, "pfeiffer", {**TASK, "stack_on": [german]}, steps=1)
    directory = run(config, deep_base)
    with closing(open_registry(deep_base.home)) as registry:
        registry.yank(german, "withdrawn")
    says = rf"^stack_on: {german}: it is yanked \(withdrawn\): say with --stack-on what else lies below"
    with pytest.raises(PreconditionError, match=says):
        loss(directory, config, deep_base.home)
    assert loss(directory, config, deep_base.home, []) > 0
    with pytest.raises(PreconditionError, match="choose another adapter than the one that lies on it"):
        wear(deep_base.stored, directory, torch.float32, deep_base.home)


def test_a_run_resumes_only_on_what_it_was_stacked_on(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, language: Callable[[str, int], str]
) -> None:
    german, dutch = language("german", 1), language("dutch", 2)
    config = make_config(deep_base, "pfeiffer", {**TASK, "stack_on": ["acme/german"]}, save_every=3)
    whole = weights(run(config, deep_base))
    for path in (config.checkpoints / "checkpoint-6").iterdir():
        path.unlink()
    again = weights(run(resumed(config), deep_base))
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    assert isinstance(config.adapter, BottleneckOptions)
    # By digest it is the same run, and on another adapter it is not.
    named = replace(config, adapter=replace(config.adapter, stack_on=(german,)))
    assert run(resumed(named), deep_base) == config.output
    other = replace(config, adapter=replace(config.adapter, stack_on=(dutch,)))
    with pytest.raises(InvalidInputError, match=r"another run: adapter\.stack_on changed"):
        run(resumed(other), deep_base)


def test_what_cannot_lie_below_is_refused_by_name(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, language: Callable[[str, int], str], tmp_path: Path
) -> None:
    german = language("german", 1)
    lora = run(make_config(deep_base, "lora", {"r": 4}, steps=1), deep_base).rename(tmp_path / "lora")

    def refused(stack_on: list[str], says: str, kind: type[Exception] = InvalidInputError) -> None:
        with pytest.raises(kind, match=says):
            run(make_config(deep_base, "pfeiffer", {"stack_on": stack_on}), deep_base)

    kind = "it is an adapter of the kind lora: only bottleneck adapters are stacked"
    refused([f"acme/lora={lora}"], rf"adapter\.stack_on: acme/lora={lora}: {kind}")
    with closing(open_registry(deep_base.home)) as registry:
        registry.yank(german, "withdrawn")
    refused([german], r"adapter\.stack_on: acme/german@.*: it is yanked \(withdrawn\)", PreconditionError)
    with pytest.raises(InvalidInputError, match="stack_on: artifact is of the kind lora; only bottleneck adapters"):
        wear(deep_base.stored, lora, torch.float32, deep_base.home, stack_on=[german])


def test_preferences_over_the_base_alone_are_not_stacked(deep_base: AddedBase, make_config: MakeConfig) -> None:
    document = make_config(deep_base, "pfeiffer", {"stack_on": ["acme/german"]}).as_json()
    document["objective"] = {"kind": "dpo"}
    with pytest.raises(InvalidInputError, match=r"adapter\.stack_on: the reference of dpo is the base"):
        configs.parse(document)
    assert configs.parse({**document, "start": "acme/task"}).start == "acme/task"


def test_only_bottleneck_methods_are_stacked(deep_base: AddedBase, make_config: MakeConfig) -> None:
    for method in METHODS:
        if METHODS[method].kind != "bottleneck":
            with pytest.raises(InvalidInputError, match=r"adapter\.stack_on: unknown key"):
                make_config(deep_base, method, {"stack_on": ["acme/german"]})
