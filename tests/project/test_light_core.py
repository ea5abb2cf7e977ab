"""Client, command line and registry do their work where nothing heavy can be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Behaves as an environment without the extras does: these modules cannot be found.
REFUSING = """
import sys
from importlib.abc import MetaPathFinder

HEAVY = {"torch", "transformers", "peft", "trl", "accelerate", "datasets"}
HEAVY |= {"safetensors", "tokenizers", "gguf", "jinja2", "prometheus_client"}
HEAVY |= {"obstore", "psycopg", "model_signing", "sigstore"}

class Refusing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise ModuleNotFoundError(f"No module named {name!r} (refused by the test)", name=name)
        return None

sys.meta_path.insert(0, Refusing())
"""
COMMAND_LINE = REFUSING + "from weft_client.cli import main; main()"
EVERYTHING = (
    REFUSING
    + """
import importlib, pkgutil, weft, weft_client, weft_registry

# Imported by the module that opens object stores, where a URL asks for one.
EXTRA = tuple(f"weft_registry.blobs.{name}" for name in ("bucket", "object", "reader"))

for name in weft_client.__all__:
    getattr(weft_client, name)
for package in (weft, weft_client, weft_registry):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        # Alembic runs the second by itself, with a migration under way.
        if not module.name.endswith(("__main__", "migrations.env", *EXTRA)):
            importlib.import_module(module.name)
            print(module.name)
"""
)


def _python(script: str, *args: str, home: Path, status: int = 0) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WEFT_")}
    environment["WEFT_HOME"] = str(home)
    ran = subprocess.run(
        [sys.executable, "-c", script, *args],
        cwd=home.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == status, ran.stdout + ran.stderr
    return ran.stdout if status == 0 else ran.stderr


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A WEFT_HOME that is not there yet."""
    return tmp_path / "home"


def test_the_refusing_hook_refuses(home: Path) -> None:
    message = _python(REFUSING + "import torch", home=home, status=1)
    assert "refused by the test" in message


def test_every_module_of_client_and_registry_imports(home: Path) -> None:
    imported = _python(EVERYTHING, home=home).split()
    assert {"weft_client.inference", "weft_client.cli.app", "weft_registry.embedded", "weft.v1.registry_pb2"} <= {
        *imported
    }


def test_help_lists_every_command(home: Path) -> None:
    text = _python(COMMAND_LINE, "--help", home=home)
    for command in ("push", "pull", "list", "base", "train", "serve", "generate", "merge"):
        assert f"  {command} " in text


def test_help_of_a_heavy_command_is_there(home: Path) -> None:
    assert "--base" in _python(COMMAND_LINE, "serve", "--help", home=home)


def test_listing_an_empty_registry(home: Path) -> None:
    assert json.loads(_python(COMMAND_LINE, "list", "--json", home=home)) == []


def test_push_list_verify_pull(home: Path, small_artifact: Path, tmp_path: Path) -> None:
    _python(COMMAND_LINE, "push", str(small_artifact), "acme/small", "--tag", "v1", home=home)
    assert "acme/small" in _python(COMMAND_LINE, "list", home=home)
    assert "as published" in _python(COMMAND_LINE, "verify", "acme/small:v1", home=home)
    pulled = tmp_path / "pulled"
    _python(COMMAND_LINE, "pull", "acme/small:v1", "--to", str(pulled), home=home)
    for path in small_artifact.iterdir():
        assert (pulled / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(("command", "extra"), [("serve --base tiny", "serve"), ("base add tiny ./tiny.gguf", "serve")])
def test_command_that_needs_an_extra_names_it(home: Path, command: str, extra: str) -> None:
    assert f"weft[{extra}]" in _python(COMMAND_LINE, *command.split(), home=home, status=1)
