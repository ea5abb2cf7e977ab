"""Bottleneck adapters as the AdapterHub library saves them: imported with their tensors as they are, or refused by the
key that Weft does not compute."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tests.oracles.adapterhub_subjects import ADAPTERS, HIDDEN, LAYERS, SAVED, adapter_tensors
from tests.registry.lab import BASE, safetensors_bytes
from weft_client.cli.app import app
from weft_registry import artifact, headers, validation
from weft_registry.adapterhub_format import WEIGHTS, import_adapterhub, is_saved_by_adapterhub
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import InvalidInputError, NotFoundError, UnsupportedError
from weft_registry.home import Home
from weft_registry.kinds import kind_schema

HUB_BASE = replace(BASE, hidden_size=HIDDEN, num_layers=LAYERS)


def saved(directory: Path, name: str, change: Callable[[dict[str, Any]], None] = lambda config: None) -> Path:
    """A directory as the library saves it; its configuration and the tensors' names are the library's own."""
    there = json.loads(SAVED.read_text())[name]
    assert WEIGHTS in there["files"]
    directory.mkdir(parents=True)
    config = there["adapter_config.json"]
    change(config)
    (directory / artifact.CONFIG).write_text(json.dumps(config))
    ours = adapter_tensors(name)
    tensors = {hub: ours[_our_name(hub)] for hub in there["tensors"]}
    assert len(tensors) == len(ours)
    (directory / WEIGHTS).write_bytes(safetensors_bytes(tensors))
    return directory


def _our_name(hub: str) -> str:
    parts = hub.split(".")
    place = {"attention_adapters": "attention", "output_adapters": "mlp"}[parts[3]]
    return ".".join(["model.layers", parts[2], place, parts[6], parts[-1]])


@pytest.mark.parametrize("name", ADAPTERS)
def test_what_the_library_saved_is_an_artifact_with_the_same_numbers(name: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "hub", name)
    assert is_saved_by_adapterhub(source)
    made = import_adapterhub(source, HUB_BASE, tmp_path / "made", name=name)
    manifest = validation.validate_directory(made, HUB_BASE)
    adapter = ADAPTERS[name]
    params = kind_schema("bottleneck").parse(manifest.adapter)
    assert (params.reads, params.places, params.layers) == (adapter.reads, adapter.places, adapter.layers)
    assert (params.bottleneck_size, params.scaling) == (adapter.size, float(adapter.config.get("scaling", 1.0)))
    assert params.non_linearity == adapter.config["non_linearity"]
    weights = made / artifact.WEIGHTS
    with weights.open("rb") as file:
        header = headers.read_header(file, weights.stat().st_size)
        for entry in header.entries:
            stored = np.frombuffer(b"".join(headers.read_tensor(file, entry)), np.float32).reshape(entry.shape)
            assert np.array_equal(stored, adapter_tensors(name)[entry.name])


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], None], type[Exception], str]] = {
    "a norm of its own": (lambda c: c["config"].update(ln_after=True), InvalidInputError, "ln_after"),
    "gates": (lambda c: c["config"].update(use_gating=True), InvalidInputError, "use_gating"),
    "invertible adapters": (lambda c: c["config"].update(inv_adapter="nice"), InvalidInputError, "inv_adapter"),
    "compacter": (lambda c: c["config"].update(phm_layer=True), InvalidInputError, "phm_layer"),
    "a learned scaling": (lambda c: c["config"].update(scaling="learned"), InvalidInputError, "scaling"),
    "no residual": (lambda c: c["config"].update(original_ln_after=False), InvalidInputError, "original_ln_after"),
    "another function": (lambda c: c["config"].update(non_linearity="mish"), InvalidInputError, "non_linearity"),
    "an unknown key": (lambda c: c["config"].update(sparkle=1), InvalidInputError, "sparkle"),
    "another architecture": (lambda c: c["config"].update(architecture="reft"), UnsupportedError, "reft"),
    "another model": (lambda c: c.update(model_type="gpt2"), UnsupportedError, "gpt2"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_would_change_the_result_is_refused_by_name(case: str, tmp_path: Path) -> None:
    change, error, message = CHANGES[case]
    source = saved(tmp_path / "hub", "pfeiffer", change)
    with pytest.raises(error, match=message):
        import_adapterhub(source, HUB_BASE, tmp_path / "made", name="x")
    assert not (tmp_path / "made").exists()


def test_pickled_weights_are_refused_with_the_way_out(tmp_path: Path) -> None:
    source = saved(tmp_path / "hub", "pfeiffer")
    (source / WEIGHTS).rename(source / "pytorch_adapter.bin")
    with pytest.raises(NotFoundError, match="use_safetensors=True"):
        import_adapterhub(source, HUB_BASE, tmp_path / "made", name="x")


def test_a_fusion_is_refused_with_what_to_do_instead(tmp_path: Path) -> None:
    (tmp_path / "adapter_fusion_config.json").write_text('{"config": {}, "model_type": "llama"}')
    (tmp_path / "model_adapter_fusion.safetensors").write_bytes(b"")
    assert is_saved_by_adapterhub(tmp_path)
    with pytest.raises(UnsupportedError, match=r"fusion as AdapterHub saves it.*method: fusion"):
        import_adapterhub(tmp_path, HUB_BASE, tmp_path / "made", name="x")
    assert not (tmp_path / "made").exists()
    # Beside an adapter it says nothing of that adapter.
    source = saved(tmp_path / "hub", "pfeiffer")
    (source / "adapter_fusion_config.json").write_text("{}")
    import_adapterhub(source, HUB_BASE, tmp_path / "made", name="x")


def test_tensors_of_another_adapter_are_refused(tmp_path: Path) -> None:
    source = saved(tmp_path / "hub", "pfeiffer")
    extra = {"model.layers.0.output_adapters.gate.x.weight": np.zeros((2, 2), np.float32)}
    (source / WEIGHTS).write_bytes(safetensors_bytes(extra))
    with pytest.raises(InvalidInputError, match="no tensor of a bottleneck"):
        import_adapterhub(source, HUB_BASE, tmp_path / "made", name="x")


def test_pefts_directories_are_not_taken_for_its_own(tmp_path: Path) -> None:
    (tmp_path / artifact.CONFIG).write_text('{"peft_type": "LORA", "config": {}, "model_type": "llama"}')
    assert not is_saved_by_adapterhub(tmp_path)
    assert not is_saved_by_adapterhub(tmp_path / "nowhere")


def test_push_publishes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("WEFT_REGISTRY", raising=False)
    home = Home(tmp_path / "home")
    (home.bases / "hub").mkdir(parents=True)
    (home.bases / "hub" / "base.json").write_text(json.dumps(HUB_BASE.as_json()))
    source = saved(tmp_path / "hub", "houlsby")
    result = CliRunner().invoke(app, ["push", str(source), "acme/houlsby", "--base", "hub"])
    assert result.exit_code == 0, result.output
    registry = EmbeddedRegistry(home)
    assert registry.resolve("acme/houlsby").manifest.kind == "bottleneck"
    registry.close()
