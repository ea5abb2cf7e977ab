"""kill -9 of a served registry while a client pushes: nothing half there, nothing acknowledged lost, nothing sent
twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.backends.fresh import only_on_disk
from tests.registry.kill_lab import Client, Fault, ServedRegistry, insist, large_artifact
from tests.registry.kill_rounds import kill_in_rounds
from weft_registry import transfer
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.reference import AdapterName
from weft_registry.remote import registry as remote

NAME = AdapterName("team", "support")
_UPLOADS = "weft_registry.blobs.staging:ReceivingStore"
_CHANGES = "weft_registry.catalog.changes"
POINTS: dict[str, Fault] = {
    "before a blob": (_UPLOADS, "finish_upload", "before", 1),
    "after the first blob": (_UPLOADS, "finish_upload", "after", 1),
    "after all blobs": (_UPLOADS, "finish_upload", "after", 2),
    "before the transaction": (_CHANGES, "insert_version", "before", 1),
    "before the commit": (_CHANGES, "insert_version", "after", 1),
    "after the commit": ("weft_registry.embedded:EmbeddedRegistry", "publish", "after", 1),
}


@pytest.fixture
def served(home: Home) -> Iterator[ServedRegistry]:
    server = ServedRegistry(home)
    yield server
    server.kill()


def problems(registry: EmbeddedRegistry) -> tuple[str, ...]:
    return list(registry.check())[-1].problems


@pytest.mark.parametrize("point", POINTS)
def test_a_push_to_a_server_that_is_killed_at_any_point_is_done_in_the_end(
    point: str, served: ServedRegistry, registry: EmbeddedRegistry, new_artifact: Callable[..., Path]
) -> None:
    first = transfer.push(registry, new_artifact(seed=1), NAME, tags=["v1"]).version
    directory = new_artifact(seed=2, readme="Another card.\n")
    served.start(POINTS[point])
    client = Client(served.address, lambda to: insist(lambda: transfer.push(to, directory, NAME, tags=["v2"])))
    client.start()
    served.wait_killed()

    # Before anybody does anything more: the earlier version is whole, and the new one is there or not.
    assert problems(registry) == ()
    versions = registry.list_versions(NAME)
    assert len(versions) == 1 + (point == "after the commit")
    assert versions[-1].digest == first.digest

    served.start()
    second = client.done().version
    assert problems(registry) == ()
    assert [version.digest for version in registry.list_versions(NAME)] == [second.digest, first.digest]
    assert registry.resolve("team/support:v2").digest == second.digest


def test_an_upload_that_is_cut_by_a_kill_goes_on_where_it_was(
    served: ServedRegistry,
    registry: EmbeddedRegistry,
    home: Home,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = large_artifact(tmp_path / "large", 12)
    size = (directory / "adapter_model.safetensors").stat().st_size
    starts: list[tuple[int, int]] = []
    real = remote._upload_requests

    def requests(path: Path, upload_id: str, offset: int, report: Any) -> Any:
        if path.stat().st_size == size:
            (upload,) = [path for path in (home.registry / "uploads").iterdir() if f"-{size}" in path.name]
            starts.append((offset, upload.stat().st_size))
        return real(path, upload_id, offset, report)

    monkeypatch.setattr(remote, "_upload_requests", requests)
    # The weights are the only file of several chunks: the small ones take two calls.
    served.start((_UPLOADS, "write_upload", "after", 8))
    client = Client(served.address, lambda to: insist(lambda: transfer.push(to, directory, NAME)))
    client.start()
    served.wait_killed()
    (upload,) = [path for path in (home.registry / "uploads").iterdir() if f"-{size}" in path.name]
    committed = upload.stat().st_size
    assert committed >= 6 << 20
    served.start()
    client.done()
    # Every byte that was committed stays: the second call begins right behind it.
    assert starts == [(0, 0), (committed, committed)]
    assert problems(registry) == ()


def test_a_read_only_client_sees_whole_versions_after_every_kill(
    served: ServedRegistry, registry: EmbeddedRegistry, new_artifact: Callable[..., Path], tmp_path: Path
) -> None:
    version = transfer.push(registry, new_artifact(), NAME).version
    served.start(("weft_registry.embedded:EmbeddedRegistry", "read_blob", "before", 2))
    client = Client(served.address, lambda to: insist(lambda: transfer.pull(to, "team/support", tmp_path / "pulled")))
    client.start()
    served.wait_killed()
    served.start()
    assert client.done().digest == version.digest


@only_on_disk
def test_kills_at_random_times_lose_nothing(home: Home, tmp_path: Path) -> None:
    report = kill_in_rounds(home, tmp_path / "work", rounds=20, seed=0)
    assert report.kills == 20
    assert report.losses == report.problems == ()
