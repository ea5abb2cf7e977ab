"""`weft base export` and what `weft base show` says of the engines."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.tiny_models import AddedBase
from weft_client.cli.app import app


@pytest.fixture
def run(tiny_base: Callable[..., AddedBase], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """`run("base", "show", NAME)`: status and output, over the tiny bases' home."""
    monkeypatch.setenv("WEFT_HOME", str(tiny_base().home.root))

    def invoke(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, list(arguments))
        return result.exit_code, result.output

    return invoke


def test_export_writes_a_model_and_says_what_it_costs(
    run: Callable[..., tuple[int, str]], tiny_base: Callable[..., AddedBase], tmp_path: Path
) -> None:
    target = tmp_path / "exported"
    status, output = run("base", "export", tiny_base().name, str(target))
    assert status == 0, output
    assert "logits differ from the exact base's by" in output
    assert (target / "model.safetensors").is_file()


def test_export_answers_json(
    run: Callable[..., tuple[int, str]], tiny_base: Callable[..., AddedBase], tmp_path: Path
) -> None:
    status, output = run("base", "export", tiny_base().name, str(tmp_path / "exported"), "--json")
    assert status == 0, output
    logits = json.loads(output)["logits"]
    assert 0 < logits["mean"] < logits["largest"]


def test_export_never_writes_over_what_is_there(
    run: Callable[..., tuple[int, str]], tiny_base: Callable[..., AddedBase], tmp_path: Path
) -> None:
    (tmp_path / "mine").write_text("kept")
    status, output = run("base", "export", tiny_base().name, str(tmp_path))
    assert status == 1
    assert "not an empty directory" in output
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_show_says_what_each_engine_runs(
    run: Callable[..., tuple[int, str]], tiny_base: Callable[..., AddedBase]
) -> None:
    _, output = run("base", "show", tiny_base().name, "--json")
    engines = json.loads(output)["engines"]
    assert engines["vllm"].startswith("weft_int4 g32")
    assert engines["torch"].startswith(("native int4", "torch kernels: "))
    _, text = run("base", "show", tiny_base().name)
    assert engines["torch"] in text
