"""Dependencies point one way: the contracts hold, and a planted violation of each is caught."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PARTS = ("protos", "registry", "client", "adapters", "trainer", "server")


@pytest.fixture(scope="module")
def tree(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources and of the contracts, free to be spoilt (and mended) by one test at a time."""
    copy = tmp_path_factory.mktemp("tree")
    for part in PARTS:
        shutil.copytree(root / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "pyproject.toml", copy)
    return copy


def _lint(tree: Path) -> subprocess.CompletedProcess[str]:
    # Ahead of the installed packages, so that what is looked at is the copy.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(tree / part) for part in PARTS)}
    command = [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)


def test_contracts_hold(tree: Path) -> None:
    linted = _lint(tree)
    assert linted.returncode == 0, linted.stdout + linted.stderr


@pytest.mark.parametrize(
    ("module", "planted"),
    [
        ("registry/weft_registry/names.py", "import weft_adapters"),
        ("registry/weft_registry/names.py", "import torch"),
        ("registry/weft_registry/names.py", "import weft_client.results"),
        ("adapters/weft_adapters/int4.py", "import weft_trainer"),
        ("trainer/weft_trainer/__init__.py", "import weft_server"),
        ("trainer/weft_trainer/data/rows.py", "import weft_trainer.modeling.base"),
        ("trainer/weft_trainer/methods/targets.py", "import weft_trainer.training.loop"),
        ("server/weft_server/__init__.py", "import weft_trainer"),
        ("server/weft_server/__init__.py", "import weft_client.results"),
        ("client/weft_client/messages.py", "import weft_server"),
        ("client/weft_client/results.py", "import transformers"),
        # What a command of the command line does not see when it is imported, but pulls in all the same.
        ("registry/weft_registry/digest.py", "def late() -> None:\n    import torch"),
    ],
)
def test_planted_violation_is_caught(tree: Path, module: str, planted: str) -> None:
    path = tree / module
    original = path.read_text()
    path.write_text(f"{original}\n\n{planted}\n")
    try:
        linted = _lint(tree)
    finally:
        path.write_text(original)
    assert linted.returncode == 1, f"not caught: {planted} in {module}\n{linted.stdout}{linted.stderr}"
    assert "BROKEN" in linted.stdout


def test_every_module_of_the_client_library_is_under_contract(root: Path) -> None:
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    light = {
        name
        for contract in contracts
        if "torch" in contract.get("forbidden_modules", ())
        for name in contract["source_modules"]
    }
    client = root / "client" / "weft_client"
    modules = {f"weft_client.{path.stem}" for path in client.glob("*.py") if path.stem != "__init__"}
    assert modules <= light, f"add to pyproject.toml: {', '.join(sorted(modules - light))}"
