"""What holds for every file: modules say what they are, and nothing points at one machine or one package registry."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path

# Spelt in pieces, or this file would be the first to be found. Besides these: wherever this checkout happens to lie.
PLACES = [
    "".join(pieces) for pieces in (("/root", "/"), ("pypi.", "org"), ("python", "hosted"), ("download.", "pytorch"))
]
# Where packages come from is the business of whoever installs, through pip's own configuration.
OPTIONS = ["--index-url", "--extra-index-url", "--find-links", "--trusted-host"]


def test_every_module_says_what_it_is(source_modules: list[Path], root: Path) -> None:
    assert len(source_modules) > 40
    silent = [
        str(path.relative_to(root))
        for path in source_modules
        if (text := path.read_text()).strip() and not ast.get_docstring(ast.parse(text))
    ]
    assert not silent, f"no module docstring: {', '.join(silent)}"


def _found(files: list[Path], words: list[str], root: Path) -> str:
    texts = {path.relative_to(root): path.read_text() for path in files}
    return "; ".join(f"{path}: {word}" for path, text in texts.items() for word in words if word in text)


def test_no_file_names_a_machine_or_a_package_index(text_files: list[Path], root: Path) -> None:
    assert root / ".ci" / "run" in text_files
    assert root / "tests" / "project" / "test_sources.py" in text_files
    assert not _found(text_files, [*PLACES, f"{root}/"], root)


def test_nothing_tells_pip_where_to_look(text_files: list[Path], root: Path) -> None:
    assert root / "Makefile" in text_files
    assert not _found([path for path in text_files if root / "tests" not in path.parents], OPTIONS, root)


def test_no_pickle_is_loaded_or_saved(source_modules: list[Path], root: Path) -> None:
    # A checkpoint of an optimizer is the trainer's own and never leaves it; weights travel as safetensors only.
    pattern = re.compile(r"^\s*(import pickle|from pickle|import dill|from dill)|pickle\.loads?\(", re.MULTILINE)
    found = [str(path.relative_to(root)) for path in source_modules if pattern.search(path.read_text())]
    assert not found, f"unpickling runs code: {', '.join(found)}"


def test_ci_runs_the_targets_that_a_person_runs(root: Path) -> None:
    script = root / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "set -euo pipefail"
    assert {"make check", "make test"} <= {*lines}
    assert lines[-1] == "make test", "the output must end with pytest's own summary"


def test_every_listed_target_is_a_rule_of_the_makefile(root: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    shown = subprocess.run(["make"], cwd=root, env=environment, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^  make ([a-z-]+) +\S", shown, re.MULTILINE)
    assert {"help", "venv", "demo", "test", "check", "protos", "bench", "format", "lock", "clean", "dist"} <= {*targets}
    for target in targets:
        dry = ["make", "--no-print-directory", "-n", "-o", ".venv/.complete", target]
        subprocess.run(dry, cwd=root, env=environment, capture_output=True, check=True)
