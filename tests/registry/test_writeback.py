"""Large files are on their way to disk while they are written, wherever a registry writes them."""

from __future__ import annotations

import ctypes
import os
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.backends.fresh import only_on_disk
from tests.registry.lab import make_artifact, serving
from weft_registry import writeback
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.reference import AdapterName
from weft_registry.remote.registry import RemoteRegistry
from weft_registry.transfer import pull, push

NAME = AdapterName("team", "support")
MIB = 1 << 20
NOTES = "0123456789abcde\n" * (5 * MIB // 32)
"""Two and a half chunks."""
PARTS = [(0, MIB), (MIB, MIB), (2 * MIB, MIB // 2)]

Begun = dict[int, list[tuple[int, int]]]


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> Begun:
    """The parts of each file, by inode, whose writing was begun: from where, and how many bytes."""
    found: Begun = defaultdict(list)

    def noted(descriptor: int, offset: int, size: int, _flags: int) -> int:
        # The kernel cannot write what it was not given.
        assert os.fstat(descriptor).st_size >= offset + size
        found[os.fstat(descriptor).st_ino].append((offset, size))
        return 0

    monkeypatch.setattr(writeback, "_sync_file_range", lambda: noted)
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_artifact(tmp_path / "source", notes=NOTES)


def blob(registry: EmbeddedRegistry) -> Path:
    version = registry.resolve(str(NAME))
    digest = next(file.sha256 for file in version.manifest.files if file.path == "notes.txt")
    return next(Path(registry.blobs.where).rglob(digest.removeprefix("sha256:")))


@only_on_disk
def test_a_push_into_a_registry_in_this_process(begun: Begun, registry: EmbeddedRegistry, source: Path) -> None:
    push(registry, source, NAME)
    assert begun == {blob(registry).stat().st_ino: PARTS}


@only_on_disk
def test_what_a_server_receives(begun: Begun, registry: EmbeddedRegistry, source: Path) -> None:
    with serving(registry) as target, closing(RemoteRegistry(target)) as remote:
        push(remote, source, NAME)
    assert begun == {blob(registry).stat().st_ino: PARTS}


def test_a_pull(begun: Begun, registry: EmbeddedRegistry, source: Path, tmp_path: Path) -> None:
    push(registry, source, NAME)
    begun.clear()
    pull(registry, str(NAME), tmp_path / "out")
    assert begun == {(tmp_path / "out" / "notes.txt").stat().st_ino: PARTS}


def test_a_backup(begun: Begun, registry: EmbeddedRegistry, source: Path, tmp_path: Path) -> None:
    push(registry, source, NAME)
    begun.clear()
    registry.backup(tmp_path / "backup")
    assert list(begun.values()) == [PARTS]


@pytest.mark.parametrize("absent", [AttributeError, OSError])
def test_where_the_kernel_has_no_such_call_nothing_is_begun(
    absent: type[Exception], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Library:
        def __getattr__(self, name: str) -> Callable[..., int]:
            raise absent(name)

    writeback._sync_file_range.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: Library())
    with (tmp_path / "file").open("wb") as file:
        file.write(b"x" * MIB)
        writeback.begin_writeback(file, MIB)
    monkeypatch.undo()
    writeback._sync_file_range.cache_clear()
    assert (tmp_path / "file").stat().st_size == MIB


def test_the_real_call_takes_what_it_is_given(tmp_path: Path) -> None:
    start_writing = writeback._sync_file_range()
    if start_writing is None:
        pytest.skip("this machine has none")
    with (tmp_path / "file").open("wb") as file:
        file.write(b"x" * MIB)
        writeback.begin_writeback(file, MIB)
        assert start_writing(file.fileno(), 0, MIB, 2) == 0
    assert (tmp_path / "file").read_bytes() == b"x" * MIB
