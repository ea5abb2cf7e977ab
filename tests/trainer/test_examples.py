"""Every recipe in `examples/` runs as it is, a few steps long and on a tiny base."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_models import AddedBase
from weft_registry import artifact
from weft_trainer import train as runs
from weft_trainer.config import run as configs
from weft_trainer.methods import METHODS
from weft_trainer.progress import QuietReporter

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "examples").glob("*.yaml"))

TWO_STEPS = ("training.steps=2", "training.epochs=null", "training.eval_every=null")


@pytest.mark.parametrize("recipe", RECIPES, ids=[recipe.stem for recipe in RECIPES])
def test_a_recipe_runs_as_it_is(
    recipe: Path,
    tiny_base: Callable[..., AddedBase],
    tiny_source: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Its paths are relative to the repository.
    monkeypatch.chdir(ROOT)
    base = tiny_base()
    overrides = [f"base={base.name}", f"output={tmp_path / 'made'}", *TWO_STEPS]
    if recipe.stem == "fusion":
        parts = [trained_part(base, "pfeiffer", tmp_path / f"part-{seed}", seed) for seed in (0, 1)]
        overrides.append(f"adapter.parts=[{', '.join(f'acme/part-{path.name}={path}' for path in parts)}]")
    if recipe.stem == "mad-x":
        overrides.append(f"adapter.stack_on=[acme/german={trained_part(base, 'language', tmp_path / 'german')}]")
    if recipe.stem == "qalora":
        # The tiny base's inputs are two groups.
        overrides.append("adapter.r=2")
    if recipe.stem == "galore":
        # Its sides are 64 at most.
        overrides.append("adapter.rank=16")
    if recipe.stem == "loftq":
        overrides.append(f"adapter.original={tiny_source()}")
    if recipe.stem == "distill":
        overrides.append(f"objective.teacher={tiny_base('llama', hidden_size=128, seed=7).name}")
    config = configs.load(recipe, overrides)
    manifest = artifact.read(runs.train(config, QuietReporter(), base.home))
    assert manifest.kind == METHODS[config.method].kind
    # Those that train whole weights have the scores from before the extraction besides.
    assert {metric.name for metric in manifest.metrics} >= {"loss", "exact_match", "examples"}


def commands() -> list[list[str]]:
    """The words of every `weft train` in the recipes' headers, a command that a backslash continues as one."""
    found = []
    for recipe in RECIPES:
        said = re.sub(r" \\\n#\s*", " ", recipe.read_text())
        found += [shlex.split(words) for words in re.findall(r"^#.*?weft train (.*)$", said, re.MULTILINE)]
    return found


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_a_command_of_a_recipe_is_one_that_is_understood(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe, *overrides = command
    assert configs.load(Path(recipe), overrides)


def test_every_recipe_says_how_it_is_trained() -> None:
    assert {Path(command[0]).name for command in commands()} == {recipe.name for recipe in RECIPES}


def trained_part(base: AddedBase, recipe: str, output: Path, seed: int = 0) -> Path:
    """What a recipe over others says to train first."""
    overrides = [f"base={base.name}", f"output={output}", *TWO_STEPS, f"training.seed={seed}"]
    return runs.train(configs.load(ROOT / "examples" / f"{recipe}.yaml", overrides), QuietReporter(), base.home)
