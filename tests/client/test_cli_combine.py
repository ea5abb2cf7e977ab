"""`weft combine`, on artifacts in directories and in the embedded registry."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from benchmarks.subjects import RandomAdapter, random_adapter
from tests.tiny_models import AddedBase
from weft_adapters import combination
from weft_client.cli import combine
from weft_client.cli.app import app
from weft_registry import artifact as artifacts
from weft_registry.validation import validate

Run = Callable[..., Result]


@pytest.fixture
def run(tiny_base: Callable[..., AddedBase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """In a home of its own that has the tiny bases."""
    root = tmp_path / "home"
    root.mkdir()
    (root / "bases").symlink_to(tiny_base().home.bases)
    monkeypatch.setenv("WEFT_HOME", str(root))
    monkeypatch.delenv("WEFT_REGISTRY", raising=False)

    def invoke(*arguments: str | Path, status: int = 0) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == status, (result.output, result.exception)
        return result

    return invoke


@pytest.fixture
def parts(tiny_base: Callable[..., AddedBase], tmp_path: Path) -> list[RandomAdapter]:
    """Two LoRA adapters of ranks 4 and 2, written as ./a and ./b."""
    spec = tiny_base().stored.spec
    made = [random_adapter("lora", spec, seed, rank=rank) for seed, rank in ((1, 4), (2, 2))]
    for adapter, name in zip(made, "ab", strict=True):
        adapter.write(tmp_path / name, spec, name)
    return made


def test_directories_and_references_become_one_artifact_that_names_them(
    run: Run, parts: list[RandomAdapter], tiny_base: Callable[..., AddedBase], tmp_path: Path
) -> None:
    run("push", tmp_path / "b", "acme/b", "--tag", "v1", "-q")
    answer = run(
        "combine", tmp_path / "a", "acme/b:v1", "-o", tmp_path / "both", "--weights", "0.75,-0.5", "--json", "-q"
    )
    document = json.loads(answer.stdout)
    directory = tmp_path / "both"
    stored = (directory / artifacts.MANIFEST).read_bytes()
    manifest = validate(stored, lambda entry: (directory / entry.path).open("rb"), tiny_base().stored.spec)
    assert (manifest.kind, manifest.license, manifest.digest()) == ("lora", "apache-2.0", document["digest"])
    assert manifest.provenance["method"] == "cat"
    assert [(p["digest"], p["weight"]) for p in manifest.provenance["parts"]] == [
        (artifacts.read(tmp_path / "a").digest(), "0.75"),
        (artifacts.read(tmp_path / "b").digest(), "-0.5"),
    ]
    module = "base_model.model.model.layers.1.mlp.up_proj"
    tensors = load_file(str(directory / artifacts.WEIGHTS))
    found = tensors[f"{module}.lora_B.weight"].double() @ tensors[f"{module}.lora_A.weight"].double()
    wanted = sum(
        weight
        * 2.0
        * part.tensors[f"{module}.lora_B.weight"].double()
        @ part.tensors[f"{module}.lora_A.weight"].double()
        for part, weight in zip(parts, (0.75, -0.5), strict=True)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-8)


def test_weights_are_counted_and_are_numbers(run: Run, parts: list[RandomAdapter], tmp_path: Path) -> None:
    common = ("combine", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "both")
    for text in ("acme/a*0.5", "acme/a*0.5+acme/b"):
        assert f"{text!r}: name each adapter by itself, and say with --weights" in " ".join(
            run("combine", text, tmp_path / "b", "-o", tmp_path / "both", status=2).stderr.split()
        )
    assert "1 for 2 adapters" in run(*common, "--weights", "1", status=2).stderr
    assert "expected numbers" in run(*common, "--weights", "1,x", status=2).stderr
    assert "finite" in run(*common, "--weights", "1,nan", status=2).stderr


def test_what_cannot_be_merged_is_refused_and_leaves_nothing(
    run: Run, parts: list[RandomAdapter], tiny_base: Callable[..., AddedBase], tmp_path: Path
) -> None:
    common = ("combine", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "both")
    assert "the parts have 2, 4; use cat or svd" in run(*common, "--method", "linear", status=1).stderr
    assert "ties needs one" in run(*common, "--method", "ties", status=1).stderr
    random_adapter("prefix", tiny_base().stored.spec, 3).write(tmp_path / "p", tiny_base().stored.spec, "p")
    mixed = run("combine", tmp_path / "a", tmp_path / "p", "-o", tmp_path / "both", status=1)
    assert "is of kind prefix" in mixed.stderr
    assert mixed.stderr.endswith(": leave it out\n")
    random_adapter("dora", tiny_base().stored.spec, 3).write(tmp_path / "d", tiny_base().stored.spec, "d")
    worn = run("combine", tmp_path / "a", tmp_path / "d", "-o", tmp_path / "both", status=1)
    assert worn.stderr.endswith("a request can wear these parts together as they are: `weft generate a+b*0.5`\n")
    other = tiny_base("llama", num_hidden_layers=3).stored.spec
    random_adapter("lora", other, 4).write(tmp_path / "o", other, "o")
    assert "was made for the base" in run("combine", tmp_path / "a", tmp_path / "o", *common[3:], status=1).stderr
    assert "no artifact directory" in run("combine", "./gone", *common[3:], status=1).stderr
    mistyped = run("combine", tmp_path / "a", "runs/x/y", *common[3:], status=1).stderr
    assert "no artifact directory is at runs/x/y, and a published version's reference it is not" in mistyped
    mistyped = run("combine", tmp_path / "a", "runs/x", *common[3:], status=1).stderr
    assert mistyped.endswith("; and no directory runs/x is here\n")
    assert not (tmp_path / "both").exists()
    run(*common)
    assert "is there already" in run(*common, status=1).stderr


def test_the_command_offers_every_method() -> None:
    assert combine.METHODS == combination.METHODS
