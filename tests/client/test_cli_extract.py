"""`weft extract`, on a tiny base and the model it was quantized from: what rounding changed is a difference too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.tiny_models import AddedBase
from weft_client.cli.app import app
from weft_registry import artifact as artifacts

Run = Callable[..., Result]


@pytest.fixture
def run(tiny_base: Callable[..., AddedBase], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("WEFT_HOME", str(tiny_base().home.root))

    def invoke(*arguments: str | Path, status: int = 0) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == status, (result.output, result.exception)
        return result

    return invoke


def test_it_writes_an_artifact_and_says_what_it_leaves_out(
    run: Run, tiny_base: Callable[..., AddedBase], tiny_source: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_base()
    answer = run("extract", tiny_source(), "-o", tmp_path / "lora", "--base", base.name, "--rank", "4", "--json")
    document = json.loads(answer.stdout)
    assert 0 < document["error"] < 1
    assert document["ranks"] == [4] * len(base.stored.spec.linears)
    manifest = artifacts.read(tmp_path / "lora")
    assert (manifest.digest(), manifest.name) == (document["digest"], "lora")
    run("extract", tiny_source(), "-o", tmp_path / "more", "--base", base.name, "--energy", "0.9", "--name", "mine")
    more = artifacts.read(tmp_path / "more")
    assert more.name == "mine"
    assert len({*more.adapter["rank_pattern"].values(), more.adapter["r"]}) > 1, "ranks follow the energy"


def test_people_read_the_error_and_the_ranks(
    run: Run, tiny_base: Callable[..., AddedBase], tiny_source: Callable[..., Path], tmp_path: Path
) -> None:
    output = run("extract", tiny_source(), "-o", tmp_path / "lora", "--base", tiny_base().name, "-q").stdout
    assert "14, rank 16" in output
    assert "% of the difference" in output


def test_a_model_of_another_family_is_warned_of(
    run: Run, tiny_base: Callable[..., AddedBase], tiny_source: Callable[..., Path], tmp_path: Path
) -> None:
    common = ("extract", tiny_source(seed=1), "--base", tiny_base().name, "-q", "-o")
    refused = run(*common, tmp_path / "lora", "--from", tiny_source(seed=1), status=1).stderr
    assert "give the model that the base was quantized from" in refused
    answer = run(*common, tmp_path / "lora", "--ignore-rest")
    assert "next to nothing in common with the base" in answer.stderr
    assert "the base alone: 14" in answer.stdout
    own = run("extract", tiny_source(), "-o", tmp_path / "own", "--base", tiny_base().name, "-q")
    assert own.stderr == ""


def test_what_contradicts_itself_is_wrong_usage(
    run: Run, tiny_base: Callable[..., AddedBase], tiny_source: Callable[..., Path], tmp_path: Path
) -> None:
    common = ("extract", tiny_source(), "-o", tmp_path / "lora", "--base", tiny_base().name)
    assert "give one of the two" in run(*common, "--rank", "4", "--energy", "0.5", status=2).stderr
    assert "0<x<=1" in run(*common, "--energy", "0", status=2).stderr
    assert "no base model 'gone'" in run(*common[:-1], "gone", status=1).stderr
