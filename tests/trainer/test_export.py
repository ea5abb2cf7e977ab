from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.tiny_models import AddedBase
from weft_registry import artifact as artifacts
from weft_registry import digest as digests
from weft_registry.errors import InvalidInputError
from weft_registry.validation import validate
from weft_trainer.config.run import TrainConfig

ADAPTERS = {
    "lora": {"r": 4, "layers": "top:1", "rank_pattern": {"q_proj": 2}},
    "qalora": {"r": 2, "use_rslora": True},
    "prefix": {"init_text": "user: classify"},
}


@pytest.mark.parametrize("method", ADAPTERS)
def test_the_registry_accepts_every_kind_of_artifact(
    deep_base: AddedBase, make_config: Callable[..., TrainConfig], run: Callable[..., Path], method: str
) -> None:
    config = make_config(deep_base, method, ADAPTERS[method])
    directory = run(config, deep_base)
    stored = (directory / artifacts.MANIFEST).read_bytes()
    manifest = validate(stored, lambda entry: (directory / entry.path).open("rb"), deep_base.stored.spec)
    assert (manifest.kind, manifest.base) == (method, deep_base.stored.spec.fingerprint)
    assert {m.name for m in manifest.metrics} == {"loss", "exact_match", "examples"}
    assert manifest.provenance["config_sha256"] == config.digest()
    assert [d["split"] for d in manifest.provenance["datasets"]] == ["train", "eval"]
    assert manifest.metrics[0].dataset_sha256 == digests.of_file(config.data.train)
    assert {t.dtype for t in manifest.tensors} == {"F32"}
    assert sorted(p.name for p in directory.parent.iterdir()) == [directory.name], "nothing is left beside it"
    assert len({path.stat().st_mode for path in directory.iterdir()}) == 1, "who may read one file may read them all"


def test_without_held_out_examples_there_are_no_metrics(
    deep_base: AddedBase, make_config: Callable[..., TrainConfig], run: Callable[..., Path]
) -> None:
    config = make_config(deep_base, "lora", {"r": 2})
    config = replace(config, data=replace(config.data, eval_fraction=0.0))
    assert artifacts.read(run(config, deep_base)).metrics == []


def test_a_directory_that_is_no_artifact_is_never_replaced(
    deep_base: AddedBase, make_config: Callable[..., TrainConfig], run: Callable[..., Path]
) -> None:
    config = make_config(deep_base, "lora", {"r": 2})
    config.output.mkdir()
    (config.output / "thesis.md").write_text("mine")
    with pytest.raises(InvalidInputError, match="no artifact of ours"):
        run(config, deep_base)
    assert (config.output / "thesis.md").read_text() == "mine"


def test_a_failure_leaves_the_earlier_artifact_whole(
    deep_base: AddedBase,
    make_config: Callable[..., TrainConfig],
    run: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_config(deep_base, "lora", {"r": 2})
    before = artifacts.read(run(config, deep_base)).digest()

    def full(*args: object, **more: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(artifacts, "write_manifest", full)
    with pytest.raises(OSError, match="no space"):
        run(config, deep_base)
    assert artifacts.read(config.output).digest() == before
    assert [p.name for p in config.output.parent.iterdir()] == [config.output.name]


def test_training_again_gives_the_same_tensors(
    deep_base: AddedBase, make_config: Callable[..., TrainConfig], run: Callable[..., Path]
) -> None:
    config = make_config(deep_base, "qalora", {"r": 2, "layers": "top:2"})
    first = artifacts.read(run(config, deep_base)).tensors
    assert artifacts.read(run(config, deep_base)).tensors == first
