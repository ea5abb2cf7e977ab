"""kill -9 in the middle of a commit: what was there stays whole, nothing is half there, and it can be sent again. And
garbage collection beside it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.registry.hub_lab import ndjson
from tests.registry.lab import add_base, python
from weft_registry import artifact, transfer
from weft_registry.catalog import tables as t
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.hub.commits import CommitReader
from weft_registry.reference import AdapterName
from weft_registry.workspaces.committing import Committed

NewArtifact = Callable[..., Path]
NAME = AdapterName("acme", "topics")
# Where the process kills itself: it replaces one real function by its own death, before or after the real work.
POINTS = {
    "before the first blob": ("weft_registry.access.blob_access:BlobAccess", "put_file", "before"),
    "after the first blob": ("weft_registry.access.blob_access:BlobAccess", "put_file", "after"),
    "before the files are examined": ("weft_registry.workspaces.importing", "examine", "before"),
    "before the transaction": ("weft_registry.workspaces.importing", "examine", "after"),
    "inside the transaction": ("weft_registry.catalog.branches", "remove", "after"),
    "before the version": ("weft_registry.catalog.changes", "insert_version", "before"),
    "after the version": ("weft_registry.catalog.changes", "insert_version", "after"),
    "after the commit": ("weft_registry.workspaces.workspaces:Workspaces", "commit", "after"),
}
SCRIPT = """
import importlib, os, signal, sys
from pathlib import Path
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.hub.commits import CommitReader
from weft_registry.reference import AdapterName

body, owner, name, when = sys.argv[1:]
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
reader = CommitReader(registry.scratch)
reader.feed(Path(body).read_bytes())
registry.workspaces.commit(AdapterName("acme", "topics"), "main", reader.finish())
"""


def send(registry: EmbeddedRegistry, body: bytes, branch: str = "main") -> Committed:
    reader = CommitReader(registry.scratch)
    try:
        reader.feed(body)
        return registry.workspaces.commit(NAME, branch, reader.finish())
    finally:
        reader.close()


@pytest.mark.parametrize("point", POINTS)
def test_killed_at(home: Home, new_artifact: NewArtifact, tmp_path: Path, point: str) -> None:
    add_base(home)
    registry = EmbeddedRegistry(home)
    try:
        first = transfer.push(registry, new_artifact(seed=1), NAME, tags=["v1"]).version
        # Half an upload is there already, and is to become whole.
        directory = new_artifact(seed=2)
        files = [(path.name, path.read_bytes()) for path in sorted(directory.iterdir())]
        begun = send(registry, ndjson(*files[:-1]))
        assert begun.published is None
        body = tmp_path / "body"
        body.write_bytes(ndjson(files[-1], parent=begun.commit))
        owner, name, when = POINTS[point]
        process = python(SCRIPT, str(body), owner, name, when, home=home)
        _, err = process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL, err
        assert registry.resolve("acme/topics:v1") == registry.resolve(f"acme/topics@{first.digest}")
        versions = registry.list_versions(NAME)
        if point == "after the commit":
            assert [version.digest for version in versions] == [artifact.read(directory).digest(), first.digest]
            assert registry.workspaces.heads(NAME) == {}
        else:
            assert [version.digest for version in versions] == [first.digest]
            assert registry.workspaces.heads(NAME) == {"main": begun.commit}
            done = send(registry, body.read_bytes())
            assert done.commit == artifact.read(directory).digest()[7:47]
        for version in registry.list_versions(NAME):
            assert registry.verify(f"acme/topics@{version.digest}").problems == ()
        assert registry.resolve("acme/topics").digest == artifact.read(directory).digest()
    finally:
        registry.close()


def test_what_a_branch_holds_is_not_collected(
    registry: EmbeddedRegistry, home: Home, new_artifact: NewArtifact
) -> None:
    add_base(home)
    registry.workspaces.create_adapter(NAME)
    registry.workspaces.create_branch(NAME, "trial", "")
    directory = new_artifact()
    files = [(path.name, path.read_bytes()) for path in sorted(directory.iterdir())]
    send(registry, ndjson(*files), "trial")
    _end_leases(registry)
    assert registry.collect_garbage(grace_s=0.0).removed_blobs == 0
    assert registry.workspaces.create_tag(NAME, "v1", "trial").version.digest == artifact.read(directory).digest()
    send(registry, ndjson(("notes.txt", b"Only on the branch.\n"), ("deletedFile", {"path": "README.md"})), "trial")
    registry.workspaces.delete_branch(NAME, "trial")
    _end_leases(registry)
    # The notes, and the manifest that was committed as a file.
    assert registry.collect_garbage(grace_s=0.0).removed_blobs == 2
    assert registry.verify("acme/topics:v1").problems == ()


def _end_leases(registry: EmbeddedRegistry) -> None:
    with registry._catalog.write() as connection:
        connection.execute(t.blob_leases.delete())
