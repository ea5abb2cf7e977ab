"""Fixtures of the registry's tests. The functions behind them are in `tests.registry.lab`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.backends.fresh import BUCKET, SERVER, fresh_database, fresh_storage
from tests.registry.lab import make_artifact
from tests.registry.mirror_lab import UpstreamServer
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.storage import BLOBS_VARIABLE, DATABASE_VARIABLE

STORAGE = {"home", "database", "lab"}
"""The fixtures that are another thing on other back ends."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With servers as back ends, only what touches them runs: the rest would say what it says without them."""
    if not (SERVER or BUCKET):
        return
    here = Path(__file__).parent
    idle = [
        item for item in items if here in item.path.parents and not STORAGE & set(getattr(item, "fixturenames", ()))
    ]
    config.hook.pytest_deselected(items=idle)
    items[:] = [item for item in items if item not in set(idle)]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """An empty registry's home: all in files, or its catalog and blobs on the servers that the tests are given."""
    monkeypatch.setenv("WEFT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("WEFT_REGISTRY", raising=False)
    with fresh_storage() as storage:
        for variable, url in ((DATABASE_VARIABLE, storage.database), (BLOBS_VARIABLE, storage.blobs)):
            if url is None:
                monkeypatch.delenv(variable, raising=False)
            else:
                monkeypatch.setenv(variable, url)
        yield Home(tmp_path / "home")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Path | str]:
    """Where an empty catalog may be made: a file, or a database on the server that the tests are given."""
    if SERVER is None:
        yield tmp_path / "catalog.db"
    else:
        with fresh_database(SERVER) as url:
            yield url


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


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[EmbeddedRegistry]:
    """The registry that a mirror is of: in files, wherever the mirror is."""
    with closing(EmbeddedRegistry(Home(tmp_path / "origin"))) as registry:
        yield registry


@pytest.fixture
def upstream(origin: EmbeddedRegistry) -> Iterator[UpstreamServer]:
    """It in a server of its own."""
    with closing(UpstreamServer(origin)) as server:
        server.start()
        yield server
