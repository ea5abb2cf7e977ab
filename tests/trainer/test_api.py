from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.tiny_models import AddedBase
from weft_client.cli.app import app
from weft_registry.errors import InvalidInputError, NotFoundError, WeftError
from weft_trainer import api
from weft_trainer.progress import QuietReporter


@pytest.fixture
def config_file(deep_base: AddedBase, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WEFT_HOME", str(deep_base.home.root))
    path = tmp_path / "run.yaml"
    path.write_text(
        json.dumps(
            {
                "base": deep_base.name,
                "method": "lora",
                "output": str(tmp_path / "out"),
                "data": {"train": str(task_file)},
                "adapter": {"r": 4},
                "training": {"steps": 40, "dtype": "float32", "learning_rate": 1e-2, "log_every": 5},
            }
        )
    )
    return path


def test_a_file_is_trained_and_its_artifact_scored(config_file: Path, deep_base: AddedBase, task_file: Path) -> None:
    artifact = api.train_from_file(config_file, ["training.batch_size=16"], QuietReporter())
    found = api.evaluate_artifact(artifact, task_file, dtype="float32", report=QuietReporter())
    base = api.evaluate_artifact(None, task_file, base=deep_base.name, dtype="float32", report=QuietReporter())
    assert found["exact_match"] > base["exact_match"] + 0.5
    merged = api.evaluate_artifact(artifact, task_file, merged=True, dtype="float32", report=QuietReporter())
    assert merged["loss"] == pytest.approx(found["loss"], rel=1e-3)
    assert api.evaluate_artifact(artifact, task_file, rows=5, report=QuietReporter())["examples"] == 5


def test_what_is_trained_as_plain_text_is_scored_as_plain_text(
    config_file: Path, deep_base: AddedBase, tmp_path: Path
) -> None:
    data = tmp_path / "books.jsonl"
    lines = [{"text": f"The {word} report {day}.", "source": word} for word in ("oil", "film") for day in range(9)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    artifact = api.train_from_file(config_file, [f"data.train={data}", "data.format=text"], QuietReporter())
    command = ["eval", str(artifact), str(data), "--dtype", "float32", "--json", "-q"]
    refused = CliRunner().invoke(app, command)
    assert (refused.exit_code, f"{data}:1: " in refused.stderr) == (1, True)
    scored = CliRunner().invoke(app, [*command, "--format", "text"])
    assert json.loads(scored.stdout)["examples"] == len(lines)
    with pytest.raises(InvalidInputError, match="format: templates decide what a record is"):
        api.evaluate_artifact(artifact, data, form="text", templates=config_file, report=QuietReporter())


def test_progress_goes_to_standard_error_with_loss_rate_and_time_left(
    config_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    api.train_from_file(config_file, ["training.eval_every=20"])
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "tokens/s" in captured.err
    assert "s left" in captured.err
    assert [captured.err.count(f"step {n}: eval loss") for n in (20, 40)] == [1, 1], "once each, the last one too"
    assert "arning" not in captured.err


def test_unknown_bases_and_files_are_named(config_file: Path, task_file: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no base model 'nobody'"):
        api.train_from_file(config_file, ["base=nobody"], QuietReporter())
    with pytest.raises(NotFoundError, match=r"none\.jsonl"):
        api.train_from_file(config_file, [f"data.train={tmp_path}/none.jsonl"], QuietReporter())
    with pytest.raises(InvalidInputError, match="dtype"):
        api.evaluate_artifact(None, task_file, base="b", dtype="int3", report=QuietReporter())


# (method, adapter, where and what): what only the base can refuse. The block begins in line 5.
REFUSED_BY_THE_BASE = [
    ("lora", "adapter:\n  r: 4\n  target_modules: [qq_proj]\n", "run.yaml:7:3: adapter.target_modules: 'qq_proj' is"),
    ("lora", "adapter:\n  r: 999\n", "run.yaml:6:3: adapter.r: rank 999, but"),
    (
        "lora",
        "adapter:\n  r: 4\n  rank_pattern:\n    k_proj: 2\n    q_proj: 999\n",
        "run.yaml:9:5: adapter.rank_pattern.q_proj: rank 999, but",
    ),
    ("lora", "adapter: {alpha_pattern: {qq_proj: 2}}\n", "run.yaml:5:27: adapter.alpha_pattern.qq_proj: no linear mod"),
    ("houlsby", "adapter: {layers: top:99}\n", "run.yaml:5:11: adapter.layers: 'top:99'; expected"),
    # Nothing says the rank but the default.
    ("qalora", "", "run.yaml: adapter.r: rank 8, but"),
    ("prefix", "adapter:\n  num_virtual_tokens: 60000\n", "run.yaml:6:3: adapter.num_virtual_tokens: 60000 leaves"),
    (
        "prompt_tuning",
        "adapter: {init_text: one two three, num_virtual_tokens: 1}\n",
        "run.yaml:5:37: adapter.num_virtual_tokens: 1, but adapter.init_text has",
    ),
    ("partial", "adapter:\n  unfreeze: [nothing]\n", "run.yaml:6:3: adapter.unfreeze: 'nothing' matches no weight"),
    ("partial", 'adapter:\n  unfreeze: ["*embed_tokens"]\n', "run.yaml:6:3: adapter.unfreeze: no LoRA can carry"),
    ("fusion", "adapter:\n  parts: []\n", "run.yaml:6:3: adapter.parts: "),
]


@pytest.mark.parametrize(("method", "adapter", "says"), REFUSED_BY_THE_BASE)
def test_what_only_the_base_refuses_has_its_line_and_is_refused_before_the_data_is_read(
    method: str, adapter: str, says: str, deep_base: AddedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEFT_HOME", str(deep_base.home.root))
    path = tmp_path / "run.yaml"
    # There is no such data, and nobody has looked.
    head = f"base: {deep_base.name}\nmethod: {method}\noutput: {tmp_path}/out\ndata: {{train: none.jsonl}}\n"
    path.write_text(head + adapter)
    with pytest.raises(WeftError) as caught:
        api.train_from_file(path, report=QuietReporter())
    assert caught.value.message.startswith(f"{tmp_path}/{says}")
    assert str(caught.value) == caught.value.message


def test_the_command_shows_the_line_or_the_override(config_file: Path) -> None:
    config_file.write_text(config_file.read_text().replace('"r": 4', '"r": 4,\n  "layers": [7]'))
    done = CliRunner().invoke(app, ["train", str(config_file), "-q"])
    assert done.exit_code == 1
    assert f"{config_file}:2:3: adapter.layers: no layer 7" in done.stderr
    done = CliRunner().invoke(app, ["train", str(config_file), "adapter.layers=top:9", "-q"])
    assert "override adapter.layers=top:9: adapter.layers: 'top:9'; expected" in done.stderr


def test_an_error_of_the_data_keeps_its_own_line(config_file: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a"}\n')
    with pytest.raises(InvalidInputError, match=rf"^{data}:1: "):
        api.train_from_file(config_file, [f"data.train={data}"], QuietReporter())


def test_reading_a_configuration_needs_no_torch() -> None:
    code = "import sys, weft_trainer.api; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'peft')))"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_a_chat_is_trained_on_the_answer_alone(
    config_file: Path, tmp_path: Path, tiny_base: Callable[..., AddedBase]
) -> None:
    rows = []
    for i in range(20):
        question = {"role": "user", "content": f"say {i % 2}"}
        rows.append({"messages": [question, {"role": "assistant", "content": ("yes", "no")[i % 2]}]})
    data = tmp_path / "chat.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    artifact = api.train_from_file(config_file, [f"data.train={data}"], QuietReporter())
    assert api.evaluate_artifact(artifact, data, dtype="float32", report=QuietReporter())["exact_match"] == 1.0
