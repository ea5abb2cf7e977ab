"""Runs that begin at an adapter that is there already."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor

from tests.tiny_models import AddedBase
from tests.trainer.reporters import Heard
from tests.trainer.results import resumed, weights
from weft_client.cli.app import app
from weft_registry import artifact
from weft_registry.errors import InvalidInputError, NotFoundError, PreconditionError
from weft_registry.reference import AdapterName
from weft_registry.transfer import open_registry, push
from weft_trainer import train as runs
from weft_trainer.config import run as configs
from weft_trainer.config.run import TrainConfig
from weft_trainer.progress import QuietReporter

MakeConfig = Callable[..., TrainConfig]
Run = Callable[[TrainConfig, AddedBase], Path]

OPTIONS: Mapping[str, dict[str, Any]] = {
    "lora": {"r": 4},
    "qlora": {"r": 4, "layers": "top:2"},
    "dora": {"r": 4},
    "ia3": {},
    "qalora": {"r": 2, "layers": "top:2"},
    "prefix": {"num_virtual_tokens": 4},
    "p_tuning_v2": {"num_virtual_tokens": 4},
    "prompt_tuning": {"num_virtual_tokens": 4},
    "houlsby": {"layers": "top:2"},
    "pfeiffer": {"layers": "top:2"},
    "parallel": {"layers": "top:2"},
}
BARELY = {"steps": 1, "learning_rate": 1e-12}
"""A run that changes nothing."""


@pytest.fixture
def elsewhere(run: Run, tmp_path: Path) -> Callable[..., Path]:
    """Trains, and moves the artifact to where the next run does not write."""

    def elsewhere(config: TrainConfig, base: AddedBase, name: str = "first") -> Path:
        return run(config, base).rename(tmp_path / name)

    return elsewhere


def starting_at(start: Path | str, config: TrainConfig, **others: Any) -> TrainConfig:
    return configs.parse({**config.as_json(), "start": str(start), **others})


def assert_close(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, atol=tolerance, rtol=tolerance, msg=name)


@pytest.mark.parametrize("method", OPTIONS)
def test_a_run_begins_at_the_values_of_its_start(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, elsewhere: Callable[..., Path], method: str
) -> None:
    options = OPTIONS[method]
    first = elsewhere(make_config(deep_base, method, options), deep_base)
    config = make_config(deep_base, method, options, seed=5, **BARELY)
    fresh = weights(run(config, deep_base))
    wanted = weights(first)
    assert any(not torch.allclose(fresh[name], tensor, atol=1e-4) for name, tensor in wanted.items())
    directory = run(starting_at(first, config), deep_base)
    assert_close(weights(directory), wanted, 1e-7)
    assert artifact.read(directory).provenance["parent_version"] == artifact.read(first).digest()
    assert f"| starts at | `{first}` |" in (directory / artifact.CARD).read_text()


@pytest.mark.parametrize("method", ["dora", "prefix"])
def test_two_runs_of_plain_gradient_descent_are_one_of_both_lengths(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, elsewhere: Callable[..., Path], method: str
) -> None:
    # Every step sees all 32 examples, so the order they come in does not matter.
    plain = {"optimizer": "sgd", "schedule": "constant", "warmup": 0.0, "batch_size": 32, "learning_rate": 0.5}
    whole = weights(run(make_config(deep_base, method, OPTIONS[method], steps=5, **plain), deep_base))
    first = elsewhere(make_config(deep_base, method, OPTIONS[method], steps=2, **plain), deep_base)
    moved = max(float((whole[name] - tensor).abs().max()) for name, tensor in weights(first).items())
    rest = make_config(deep_base, method, OPTIONS[method], steps=3, **plain)
    assert_close(weights(run(starting_at(first, rest), deep_base)), whole, max(1e-6, moved * 1e-3))


@pytest.mark.parametrize("method", OPTIONS)
def test_a_start_decides_the_shape_where_the_adapter_is_left_out(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, elsewhere: Callable[..., Path], method: str
) -> None:
    first = elsewhere(make_config(deep_base, method, OPTIONS[method]), deep_base)
    config = make_config(deep_base, method, OPTIONS[method], steps=3, seed=5)
    said = weights(run(starting_at(first, config), deep_base))
    left_out = starting_at(first, config, adapter=None)
    assert left_out.as_json()["adapter"] is None
    directory = run(left_out, deep_base)
    found = weights(directory)
    assert found.keys() == said.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in said.items())
    assert artifact.read(directory).adapter == artifact.read(first).adapter
    assert any(not torch.equal(found[name], tensor) for name, tensor in weights(first).items())


def test_what_was_extracted_at_ranks_of_its_own_trains_on(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, elsewhere: Callable[..., Path]
) -> None:
    whole = make_config(deep_base, "full", {"extract": {"energy": 0.8}}, learning_rate=1e-3)
    first = elsewhere(whole, deep_base)
    config = make_config(deep_base, "lora", {}, **BARELY)
    with pytest.raises(InvalidInputError, match=r"start: .*rank_pattern differs at .*, or leave adapter out"):
        run(starting_at(first, config), deep_base)
    directory = run(starting_at(first, config, adapter=None), deep_base)
    assert len(set(artifact.read(directory).adapter["rank_pattern"].values())) > 1
    assert_close(weights(directory), weights(first), 1e-7)


def test_a_fusion_goes_on_where_it_was(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, elsewhere: Callable[..., Path]
) -> None:
    parts = []
    with closing(open_registry(deep_base.home)) as registry:
        for name, seed in (("one", 3), ("two", 4)):
            part = elsewhere(make_config(deep_base, "pfeiffer", {"layers": "top:2"}, seed=seed), deep_base, name)
            parts.append(f"acme/{name}@{push(registry, part, AdapterName('acme', name)).version.digest}")
        first = elsewhere(make_config(deep_base, "fusion", {"parts": parts}), deep_base)
        config = starting_at(first, make_config(deep_base, "fusion", {"parts": parts}, seed=5, **BARELY))
        assert_close(weights(run(config, deep_base)), weights(first), 1e-7)
        # Over one of the two alone: other adapters than those it was trained over.
        other = make_config(deep_base, "fusion", {"parts": parts[:1]}, **BARELY)
        with pytest.raises(InvalidInputError, match=r"start: .* parts: it has acme/two@sha256:\w+, which are not here"):
            run(starting_at(first, other), deep_base)
        # Its manifest names the parts, which are the new one's too, by digest.
        left_out = starting_at(first, config, adapter=None)
        assert left_out.adapter is None
        heard = Heard()
        directory = runs.train(left_out, heard, deep_base.home)
        assert_close(weights(directory), weights(first), 1e-7)
        assert artifact.read(directory).adapter == artifact.read(first).adapter
        assert f"over {', '.join(parts)}" in heard.messages
        longer = starting_at(first, make_config(deep_base, "fusion", {"parts": parts}, save_every=3), adapter=None)
        whole = weights(run(longer, deep_base))
        for path in (longer.checkpoints / "checkpoint-6").iterdir():
            path.unlink()
        again = weights(run(resumed(longer), deep_base))
        assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
        push(registry, longer.output, AdapterName("acme", "again"))
        registry.yank(parts[1], "withdrawn")
        with pytest.raises(PreconditionError, match=rf"^start: {first}: adapter\.parts: {parts[1]}: it is yanked"):
            run(left_out, deep_base)


def test_a_fusions_parts_are_its_starts_and_looked_up_before_it_is_trained_to_be_published(
    deep_base: AddedBase,
    make_config: MakeConfig,
    elsewhere: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WEFT_HOME", str(deep_base.home.root))
    part = elsewhere(make_config(deep_base, "pfeiffer", {"layers": "top:2"}, steps=1), deep_base, "part")
    digest = artifact.read(part).digest()
    parts = {"parts": [f"acme/unpushed={part}"]}
    first = elsewhere(make_config(deep_base, "fusion", parts, steps=1), deep_base)
    config = tmp_path / "run.yaml"
    config.write_text(starting_at(first, make_config(deep_base, "fusion", parts), adapter=None).as_yaml())
    monkeypatch.setattr("weft_trainer.api.train_from_file", lambda *_: pytest.fail("training began"))
    done = CliRunner().invoke(app, ["train", str(config), "--publish", "acme/fused", "-q"])
    assert done.exit_code == 1
    assert f"adapter.parts: acme/unpushed@{digest}, a part of acme/fused, is not in this registry: push" in done.stderr


def test_a_published_version_is_a_start_and_a_yanked_one_by_its_digest_alone(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, elsewhere: Callable[..., Path]
) -> None:
    first = elsewhere(make_config(deep_base, "lora", {"r": 4}), deep_base)
    config = starting_at("acme/topics:v1", make_config(deep_base, "lora", {"r": 4}, **BARELY))
    with closing(open_registry(deep_base.home)) as registry:
        with pytest.raises(NotFoundError, match="acme/topics"):
            run(config, deep_base)
        version = push(registry, first, AdapterName("acme", "topics"), tags=["v1"]).version
        directory = run(config, deep_base)
        assert_close(weights(directory), weights(first), 1e-7)
        assert artifact.read(directory).provenance["parent_version"] == version.digest
        registry.yank("acme/topics:v1", "leaks names")
        with pytest.raises(NotFoundError, match=r"acme/topics:v1 was yanked \(leaks names\)"):
            run(config, deep_base)
        heard = Heard()
        runs.train(replace(config, start=f"acme/topics@{version.digest}"), heard, deep_base.home)
        assert (
            f"starts at acme/topics@{version.digest} ({version.digest}), which was yanked (leaks names)"
            in heard.messages
        )


def test_preferences_are_measured_from_the_start(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, elsewhere: Callable[..., Path], tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Note {i}:", "chosen": " energy", "rejected": " culture"} for i in range(16)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = elsewhere(make_config(deep_base, "lora", {"r": 4}, steps=12), deep_base)

    def margin(**objective: str) -> tuple[float, float]:
        document = make_config(deep_base, "lora", {"r": 4}, **BARELY).as_json()
        document["data"]["train"] = str(pairs)
        document |= {"start": str(first), "objective": {"kind": "dpo", **objective}}
        manifest = artifact.read(run(configs.parse(document), deep_base))
        metrics = {metric.name: float(metric.value) for metric in manifest.metrics}
        return metrics["reward_margin"], metrics["loss"]

    found, loss = margin()
    assert found == pytest.approx(0, abs=1e-5)
    assert loss == pytest.approx(math.log(2), abs=1e-5)
    assert margin(reference="start") == (found, loss)
    assert abs(margin(reference="base")[0]) > 1e-3


def test_without_a_start_preferences_are_measured_from_the_base(deep_base: AddedBase, make_config: MakeConfig) -> None:
    document = make_config(deep_base, "lora").as_json() | {"objective": {"kind": "dpo"}}
    assert configs.parse(document).as_json()["objective"]["reference"] == "base"


def test_a_run_resumes_only_from_the_start_that_it_began_at(
    deep_base: AddedBase, make_config: MakeConfig, run: Run, elsewhere: Callable[..., Path]
) -> None:
    first = elsewhere(make_config(deep_base, "lora", {"r": 4}), deep_base)
    config = starting_at(first, make_config(deep_base, "lora", {"r": 4}, save_every=3))
    whole = weights(run(config, deep_base))
    for path in (config.checkpoints / "checkpoint-6").iterdir():
        path.unlink()
    again = weights(run(resumed(config), deep_base))
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    # The same path, another adapter.
    first.rename(first.with_name("kept"))
    elsewhere(make_config(deep_base, "lora", {"r": 4}, seed=9), deep_base)
    with pytest.raises(InvalidInputError, match="another run: start changed"):
        run(resumed(config), deep_base)


@pytest.mark.parametrize(
    ("method", "adapter", "says"),
    [
        ("full", {}, "start: full trains the base's own weights"),
        ("galore", {}, "start: galore trains the base's own weights"),
        ("p_tuning", {}, "start: p_tuning trains an encoder.*method: prompt_tuning"),
        ("prefix", {"prefix_projection": True}, "adapter.prefix_projection: .*not the MLP"),
        ("prefix", {"init_text": "Name it."}, "adapter.init_text: without effect: start decides"),
        ("prefix", {"init_scale": 0.5}, "adapter.init_scale: without effect: start decides"),
        ("prompt_tuning", {"init": "random"}, "adapter.init: without effect: start decides"),
        ("lora", {"init": "pissa"}, "adapter.init: without effect: start decides"),
    ],
)
def test_what_a_start_leaves_without_effect_is_refused(
    deep_base: AddedBase, make_config: MakeConfig, method: str, adapter: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidInputError, match=says):
        starting_at("acme/topics", make_config(deep_base, method, adapter))


def test_a_start_that_does_not_fit_is_refused_before_anything_is_computed(
    deep_base: AddedBase,
    tiny_base: Callable[..., AddedBase],
    make_config: MakeConfig,
    elsewhere: Callable[..., Path],
    tmp_path: Path,
) -> None:
    first = elsewhere(make_config(deep_base, "lora", {"r": 4, "target_modules": ["q_proj"]}), deep_base)

    def refused(config: TrainConfig, says: str, kind: type[Exception] = InvalidInputError) -> None:
        with pytest.raises(kind, match=says):
            runs.train(config, Uncomputing(), deep_base.home)

    def config(method: str = "lora", adapter: Any = None, start: Path | str = first) -> TrainConfig:
        return starting_at(start, make_config(deep_base, method, {"r": 4, **(adapter or {})}))

    refused(config(adapter={"r": 8, "target_modules": ["q_proj"]}), "start: .*: r is 4 there and 8 here; say the same")
    refused(config(adapter={"target_modules": ["q_proj", "v_proj"]}), r"it lacks model\.layers\.0\.self_attn\.v_proj, ")
    refused(
        config(adapter={"target_modules": ["q_proj"], "alpha_pattern": {"model.layers.1.self_attn.q_proj": 3}}),
        r"alpha_pattern differs at model\.layers\.1\.self_attn\.q_proj",
    )
    refused(
        config("dora"), "is of the kind lora, and dora trains the kind dora; take one of these methods: lora, qlora"
    )
    refused(config(start=tmp_path / "artifact"), "no artifact directory at", NotFoundError)
    refused(config(start="no such thing"), "start: no artifact directory is at no such thing, and a published .* not")
    refused(config(start="runs/x/y"), "start: no artifact directory is at runs/x/y, and .* it is not: name 'x/y'")
    refused(
        config(start="runs/none"), "start: no adapter runs/none; .* and no directory runs/none is here", NotFoundError
    )
    refused(config(start="~nobody-here/x"), "start: no artifact directory at ~nobody-here/x", NotFoundError)
    (tmp_path / "empty").mkdir()
    refused(config(start=tmp_path / "empty"), "empty", NotFoundError)
    refused(replace(config(adapter={"target_modules": ["q_proj"]}), output=first), "is what this run replaces")
    spoilt = weights(first)
    next(iter(spoilt.values())).view(-1)[3] = math.nan
    save_file(spoilt, str(first / artifact.WEIGHTS), {"format": "pt"})
    refused(config(adapter={"target_modules": ["q_proj"]}), "start: .*/first: .*adapter_model.safetensors: changed")
    other = tiny_base("llama", num_hidden_layers=4, hidden_size=128)
    foreign = elsewhere(make_config(other, "lora", {"r": 4}), other, "foreign")
    refused(config(start=foreign), "start: .*/foreign: .*made for the base", PreconditionError)


class Uncomputing(QuietReporter):
    """A reporter that lets nothing be computed."""

    def task(self, label: str, total: int) -> Any:
        raise AssertionError(f"{label} was begun")
