"""The wheel, alone in an empty environment: client, command line and registry, and no torch.

Needs a package registry, so it is not part of `make test`: `make test-install` runs it, and so does CI.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.install, pytest.mark.timeout(600)]


def _run(*command: str | Path, cwd: Path, status: int = 0, **environment: str) -> str:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("WEFT_") and k != "PYTHONPATH"}
    ran = subprocess.run(
        command, cwd=cwd, env={**inherited, **environment}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == status, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the working tree."""
    out = tmp_path_factory.mktemp("wheel")
    _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out), cwd=root)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(root: Path, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin directory of an environment with nothing in it but the wheel and its core dependencies."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=True)
    bin_directory = environment / "bin"
    constraints = str(root / "constraints.txt")
    _run(bin_directory / "python", "-m", "pip", "install", "-q", "-c", constraints, str(wheel), cwd=environment)
    return bin_directory


def test_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"weft", "weft_registry", "weft_client", "weft_adapters", "weft_trainer", "weft_server"}
    assert {f"{top}/py.typed" for top in tops} <= {*names}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_no_torch_is_installed(installed: Path) -> None:
    listed = _run(installed / "python", "-m", "pip", "list", "--format=json", cwd=installed)
    packages = {entry["name"].lower() for entry in json.loads(listed)}
    assert "weft" in packages
    assert not packages & {"torch", "transformers", "peft", "trl", "safetensors", "tokenizers"}


def test_client_and_registry_work(installed: Path, small_artifact: Path, tmp_path: Path) -> None:
    home, weft = str(tmp_path / "home"), installed / "weft"
    names = "AsyncInferenceClient, AsyncRegistryClient, InferenceClient, RegistryClient"
    _run(installed / "python", "-c", f"from weft_client import {names}", cwd=tmp_path)
    assert "push" in _run(weft, "--help", cwd=tmp_path)
    _run(weft, "push", small_artifact, "acme/small", "--tag", "v1", cwd=tmp_path, WEFT_HOME=home)
    assert "acme/small" in _run(weft, "list", cwd=tmp_path, WEFT_HOME=home)
    _run(weft, "pull", "acme/small:v1", "--to", tmp_path / "pulled", cwd=tmp_path, WEFT_HOME=home)
    weights = "adapter_model.safetensors"
    assert (tmp_path / "pulled" / weights).read_bytes() == (small_artifact / weights).read_bytes()
