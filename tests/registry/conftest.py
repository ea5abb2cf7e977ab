"""Fixtures of the registry's tests. The functions behind them are in `tests.registry.lab`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.registry.lab import make_artifact
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("WEFT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("WEFT_REGISTRY", raising=False)
    return Home(tmp_path / "home")


@pytest.fixture
def registry(home: Home) -> Iterator[EmbeddedRegistry]:
    registry = EmbeddedRegistry(home)
    yield registry
    registry.close()


@pytest.fixture
def new_artifact(tmp_path: Path) -> Callable[..., Path]:
    """Makes a valid artifact: `new_artifact(kind="lora", seed=0)`."""
    count = iter(range(1000))
    return lambda **options: make_artifact(tmp_path / f"artifact{next(count)}", **options)
