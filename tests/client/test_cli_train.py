"""`weft train` and `weft eval` as far as they go without a model: what they refuse, and how."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from weft_client.cli.train import FORMATS
from weft_registry.base import BaseSpec
from weft_trainer.config import data

Weft = Callable[..., Result]
CONFIG = """
base: tiny
method: lora
name: colours
output: out
data: {train: train.jsonl}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "colours.yaml"
    path.write_text(CONFIG)
    return path


def test_an_override_reaches_the_configuration(weft: Weft, config: Path) -> None:
    answer = weft("train", config, "training.stps=3", status=1)
    assert answer.stderr.startswith("error: ")
    assert "training.stps" in answer.stderr
    assert "steps" in answer.stderr


def test_an_override_without_a_value_is_wrong_usage(weft: Weft, config: Path) -> None:
    assert "'seed' is not KEY=VALUE" in weft("train", config, "seed", status=2).stderr


def test_a_configuration_that_is_not_there_is_wrong_usage(weft: Weft, tmp_path: Path) -> None:
    assert "does not exist" in weft("train", tmp_path / "none.yaml", status=2).stderr


def test_the_base_alone_needs_a_name_and_cannot_be_merged(weft: Weft, config: Path) -> None:
    assert "--base NAME" in weft("eval", "-", config, status=2).stderr
    assert "--base NAME" in weft("eval", "-", config, "--base", "tiny", "--merged", status=2).stderr


def test_an_artifact_that_is_not_there_is_an_error(weft: Weft, base: BaseSpec, config: Path) -> None:
    assert "no artifact directory at ./gone" in weft("eval", "./gone", config, status=1).stderr
    # A directory that was mistyped, or an adapter: it could be either.
    answer = weft("eval", "runs/gone", config, status=1).stderr
    assert answer.startswith("error: no adapter runs/gone")
    assert answer.endswith("; and no directory runs/gone is here\n")
    answer = weft("eval", "runs/gone/artifact", config, status=1).stderr
    assert answer.startswith("error: no artifact directory is at runs/gone/artifact, and a published version's ")
    assert "NAMESPACE/NAME" in weft("eval", "gone", config, status=1).stderr
    assert "no directory" not in weft("eval", "acme/gone:v1", config, status=1).stderr


def test_a_format_is_one_that_is_trained_and_not_beside_templates(weft: Weft, config: Path) -> None:
    assert FORMATS == data.FORMATS
    assert "'txt' is not one of 'prompt-completion'" in weft("eval", "x/y", config, "--format", "txt", status=2).stderr
    both = ("--format", "text", "--templates", config)
    assert "--templates decide what a row is" in weft("eval", "x/y", config, *both, status=2).stderr
