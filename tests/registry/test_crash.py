"""kill -9 in the middle of a publish: earlier versions stay whole, and the publish can be done again."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.backends.fresh import BUCKET
from tests.registry.lab import python
from weft_registry import transfer
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.reference import AdapterName

NAME = AdapterName("team", "support")

PUTTING = (
    ("weft_registry.blobs.object:ObjectBlobStore", "_put")
    if BUCKET
    else ("weft_registry.blobs.local:LocalBlobStore", "_install")
)
# Where the process kills itself: it replaces one real function by its own death, before or after the real work.
POINTS = {
    "while a blob is written": ("obstore", "put", "before") if BUCKET else ("os", "fsync", "before"),
    "before a blob appears": (*PUTTING, "before"),
    "after the first blob": (*PUTTING, "after"),
    "after all blobs": ("weft_registry.validation", "check_files", "before"),
    "after validation": ("weft_registry.catalog.changes", "insert_version", "before"),
    "inside the transaction": ("weft_registry.catalog.changes", "move_alias", "after"),
    "before the commit": ("weft_registry.catalog.changes", "insert_version", "after"),
    "after the commit": ("weft_registry.embedded:EmbeddedRegistry", "publish", "after"),
}
SCRIPT = """
import importlib, os, signal, sys
from pathlib import Path
from weft_registry import transfer
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.reference import AdapterName

directory, owner, name, when = sys.argv[1:]
registry = EmbeddedRegistry(Home.from_environment())
module, _, attribute = owner.partition(":")
holder = importlib.import_module(module)
holder = getattr(holder, attribute) if attribute else holder
real = getattr(holder, name)

def dying(*arguments, **options):
    if when == "after":
        real(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(holder, name, dying)
transfer.push(registry, Path(directory), AdapterName("team", "support"), tags=["v2"], aliases=["production"])
"""


@pytest.mark.parametrize("point", POINTS)
def test_a_publish_killed_at_any_point_can_be_done_again(
    point: str, home: Home, new_artifact: Callable[..., Path], tmp_path: Path
) -> None:
    registry = EmbeddedRegistry(home)
    first = transfer.push(registry, new_artifact(seed=1), NAME, tags=["v1"], aliases=["production"]).version
    registry.close()
    directory = new_artifact(seed=2, readme="Another card.\n")

    process = python(SCRIPT, str(directory), *POINTS[point], home=home)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (-signal.SIGKILL, "")

    registry = EmbeddedRegistry(home)
    committed = point == "after the commit"
    assert registry.verify("team/support:v1").problems == ()
    assert len(registry.list_versions(NAME)) == 1 + committed
    if not committed:
        assert registry.resolve("team/support:production") == first
        assert registry.resolve("team/support") == first
    again = transfer.push(registry, directory, NAME, tags=["v2"], aliases=["production"])
    assert again.existing == committed
    assert registry.resolve("team/support:production").digest == again.version.digest
    assert registry.verify("team/support:v2").problems == ()
    assert transfer.pull(registry, "team/support:v1", tmp_path / "v1").digest == first.digest
    registry.close()
