"""Several processes on one WEFT_HOME: nothing lost, nothing doubled."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from tests.registry.lab import python
from weft_registry import transfer
from weft_registry.catalog import tables
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.reference import AdapterName
from weft_registry.storage import Storage

NAME = AdapterName("team", "support")
PUBLISH = """
import sys
from pathlib import Path
from weft_registry import transfer
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.reference import AdapterName

registry = EmbeddedRegistry(Home.from_environment())
for directory in sys.argv[1:]:
    published = transfer.push(registry, Path(directory), AdapterName("team", "support"), aliases=["newest"])
    print(published.version.digest, published.existing)
"""
SWAP = """
import json, sys
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import ConflictError
from weft_registry.home import Home
from weft_registry.reference import AdapterName

registry = EmbeddedRegistry(Home.from_environment())
name, digests = AdapterName("team", "support"), sys.argv[1:]
wins, losses, etag, at = 0, 0, "none", ""
for _ in range(40):
    target = digests[0] if at == digests[1] else digests[1]
    try:
        alias = registry.set_alias(name, "production", target, etag)
    except ConflictError as error:
        losses += 1
        etag, at = error.metadata["etag"], error.metadata["digest"]
    else:
        wins += 1
        etag, at = alias.etag, alias.digest
print(json.dumps([wins, losses]))
"""


def moves(home: Home, alias: str) -> list[tuple[str, str]]:
    """(from, to) of every move of an alias, oldest first."""
    catalog = Storage.from_environment().open_catalog(home.registry)
    c = tables.alias_moves.c
    with catalog.read() as connection:
        statement = sa.select(c.previous_digest, c.digest).where(c.alias == alias).order_by(c.id)
        found = [(row[0], row[1]) for row in connection.execute(statement)]
    catalog.close()
    return found


def test_concurrent_publishers_lose_and_double_nothing(home: Home, new_artifact: Callable[..., Path]) -> None:
    own = [[new_artifact(seed=10 * process + index) for index in range(4)] for process in range(3)]
    shared = new_artifact(seed=99)
    processes = [python(PUBLISH, *map(str, [*directories, shared]), home=home) for directories in own]
    lines = []
    for process in processes:
        out, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")
        lines += out.splitlines()
    # The shared content was new to exactly one of them.
    assert sorted(line.split()[1] for line in lines) == ["False"] * 13 + ["True"] * 2
    registry = EmbeddedRegistry(home)
    versions = registry.list_versions(NAME)
    assert {version.digest for version in versions} == {line.split()[0] for line in lines}
    assert len(versions) == 13
    assert all(registry.verify(f"team/support@{version.digest}").problems == () for version in versions)
    for alias in ("latest", "newest"):
        history = moves(home, alias)
        assert [move[0] for move in history] == ["", *(move[1] for move in history[:-1])]
    registry.close()


def test_compare_and_swap_by_processes_loses_no_update(home: Home, new_artifact: Callable[..., Path]) -> None:
    registry = EmbeddedRegistry(home)
    digests = [transfer.push(registry, new_artifact(seed=seed), NAME).version.digest for seed in (1, 2)]
    registry.close()
    processes = [python(SWAP, *digests, home=home) for _ in range(3)]
    outcomes = []
    for process in processes:
        out, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")
        outcomes.append(json.loads(out))
    history = moves(home, "production")
    # Every win is one move, and every move began where the one before it ended.
    assert len(history) == sum(wins for wins, _ in outcomes)
    assert [move[0] for move in history] == ["", *(move[1] for move in history[:-1])]
    assert all(wins + losses == 40 for wins, losses in outcomes)
