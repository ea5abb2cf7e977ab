"""Garbage collection: what nothing needs goes, what anything needs stays, whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.backends.fresh import only_on_disk
from tests.registry.lab import python, upload_all
from weft_registry import digest as digests
from weft_registry import transfer, validation
from weft_registry.blobs.local import LocalBlobStore
from weft_registry.blobs.store import StoredBlob
from weft_registry.catalog import leases, records
from weft_registry.catalog import tables as t
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import ForbiddenError, PreconditionError, UnauthenticatedError
from weft_registry.home import Home
from weft_registry.principal import NOBODY, Principal, Scope
from weft_registry.reference import AdapterName
from weft_registry.upkeep import holds
from weft_registry.upkeep.collector import Collector

NAME = AdapterName("team", "support")


def put(registry: EmbeddedRegistry, data: bytes, tmp_path: Path) -> str:
    """Stores bytes that nothing needs."""
    path = tmp_path / digests.of_bytes(data)[7:19]
    path.write_bytes(data)
    registry.blobs.put_file(path, digests.of_bytes(data), len(data))
    return digests.of_bytes(data)


def held(registry: EmbeddedRegistry) -> set[str]:
    return {blob.digest for blob in registry.blobs.list_blobs()}


def end_leases(registry: EmbeddedRegistry) -> None:
    with registry._catalog.write() as connection:
        connection.execute(t.blob_leases.update().values(until_us=records.now_us() - 1))


def test_what_nothing_needs_goes_and_what_a_version_needs_stays(
    registry: EmbeddedRegistry, new_artifact: Callable[..., Path], tmp_path: Path
) -> None:
    version = transfer.push(registry, new_artifact(), NAME).version
    registry.yank(f"{NAME}@{version.digest}")
    end_leases(registry)
    orphans = {put(registry, bytes([i]) * (i + 1), tmp_path) for i in range(5)}
    before = held(registry)

    said = registry.collect_garbage(dry_run=True, grace_s=0)
    assert held(registry) == before
    done = registry.collect_garbage(grace_s=0)
    assert said == done
    assert (done.removed_blobs, done.removed_bytes, done.kept_blobs) == (5, 15, len(before) - 5)
    assert held(registry) == before - orphans == {file.sha256 for file in version.manifest.files}
    assert registry.verify(f"{NAME}@{version.digest}").problems == ()
    with registry._catalog.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(t.blob_leases)).scalar_one() == 0
        lines = connection.execute(sa.select(t.audit).where(t.audit.c.action == "collect")).all()
    assert [(line.actor, json.loads(line.detail)) for line in lines] == [("local", {"blobs": 5, "bytes": 15})]


def test_a_large_heap_of_garbage_goes_in_several_transactions(registry: EmbeddedRegistry, tmp_path: Path) -> None:
    for i in range(700):
        put(registry, i.to_bytes(2, "big"), tmp_path)
    report = registry.collect_garbage(grace_s=0)
    assert (report.removed_blobs, report.kept_blobs, held(registry)) == (700, 0, set())


@only_on_disk
def test_the_grace_period_spares_what_came_lately(registry: EmbeddedRegistry, tmp_path: Path) -> None:
    young = put(registry, b"young", tmp_path)
    old = put(registry, b"old", tmp_path)
    path = next(path for path in tmp_path.rglob(old.removeprefix("sha256:")) if path.is_file())
    os.utime(path, (path.stat().st_mtime - 7200,) * 2)
    assert registry.collect_garbage().removed_blobs == 1
    assert held(registry) == {young}


def test_a_lease_keeps_a_blob_until_it_ends(registry: EmbeddedRegistry, tmp_path: Path) -> None:
    digest = put(registry, b"leased", tmp_path)
    with registry._catalog.write() as connection:
        leases.take(connection, [digest], "team")
    assert registry.collect_garbage(grace_s=0).removed_blobs == 0
    end_leases(registry)
    assert registry.collect_garbage(grace_s=0).removed_blobs == 1


def test_a_branch_keeps_its_files(registry: EmbeddedRegistry, tmp_path: Path) -> None:
    digest = put(registry, b"work in progress", tmp_path)
    with registry._catalog.write() as connection:
        adapter = connection.execute(
            t.adapters.insert().values(namespace="team", name="draft", created_at_us=0)
        ).inserted_primary_key
        assert adapter is not None
        connection.execute(
            t.branch_files.insert().values(
                adapter_id=adapter[0], branch="main", path="README.md", sha256=digest, size_bytes=16
            )
        )
    assert registry.collect_garbage(grace_s=0).removed_blobs == 0


def test_idle_uploads_and_their_rows_go_and_those_under_way_stay(registry: EmbeddedRegistry, home: Home) -> None:
    states = {}
    for word in ("idle", "going on"):
        data = word.encode() * 10
        states[word] = registry.start_upload(digests.of_bytes(data), len(data))
        registry.write_upload(states[word].upload_id, 0, data[:10])
    idle = home.registry / "uploads" / states["idle"].upload_id
    os.utime(idle, (idle.stat().st_mtime - 2 * 86400,) * 2)
    with registry._catalog.write() as connection:
        u = t.uploads.c
        here = u.upload_id == states["idle"].upload_id
        connection.execute(t.uploads.update().where(here).values(touched_at_us=u.touched_at_us - 2 * 86400 * 10**6))
    orphan = home.registry / "tmp" / "1-left-by-a-killed-process"
    orphan.write_bytes(b"x")
    os.utime(orphan, (0, 0))

    assert registry.collect_garbage(dry_run=True, grace_s=0).dropped_uploads == 1
    assert idle.exists()
    assert registry.collect_garbage(grace_s=0).dropped_uploads == 1
    assert [path.name for path in (home.registry / "uploads").iterdir()] == [states["going on"].upload_id]
    assert not orphan.exists()
    with registry._catalog.read() as connection:
        assert connection.execute(sa.select(t.uploads.c.upload_id)).scalars().all() == [states["going on"].upload_id]


class Interrupting(LocalBlobStore):
    """A store that lets somebody act in the middle of what others do."""

    before_delete: Callable[[], Any] | None = None

    def delete_blobs(self, digests: Sequence[str]) -> None:
        act, self.before_delete = self.before_delete, None
        if act:
            act()
        super().delete_blobs(digests)


@pytest.fixture
def interrupted(registry: EmbeddedRegistry, home: Home) -> Iterator[tuple[EmbeddedRegistry, Interrupting]]:
    """A registry whose store can be interrupted, and the store."""
    store = Interrupting(home.registry)
    other = EmbeddedRegistry(home)
    other._blobs = store
    yield other.acting_as(other._principal), store
    other.close()


def test_a_publish_whose_blobs_are_collected_meanwhile_is_refused_as_a_whole(
    registry: EmbeddedRegistry, new_artifact: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The publisher is stopped after its checks for longer than its lease and the grace period last.
    manifest = upload_all(registry, new_artifact())
    blobs = held(registry)
    real = validation.check_files

    def check_files(*arguments: Any) -> None:
        real(*arguments)
        end_leases(registry)
        assert registry.collect_garbage(grace_s=0).removed_blobs == len(blobs)

    monkeypatch.setattr(validation, "check_files", check_files)
    with pytest.raises(PreconditionError) as refused:
        registry.publish(NAME, manifest)
    assert refused.value.reason == "BLOBS_MISSING"
    assert registry.list_adapters() == []
    assert held(registry) == set()


def test_a_blob_that_is_collected_while_it_is_looked_at_is_missing(
    registry: EmbeddedRegistry, new_artifact: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = upload_all(registry, new_artifact())
    real = validation.check_files

    def check_files(*arguments: Any) -> None:
        end_leases(registry)
        registry.collect_garbage(grace_s=0)
        real(*arguments)

    monkeypatch.setattr(validation, "check_files", check_files)
    with pytest.raises(PreconditionError) as refused:
        registry.publish(NAME, manifest)
    assert refused.value.reason == "BLOBS_MISSING"


def test_a_push_that_is_beaten_by_a_collection_sends_again(
    registry: EmbeddedRegistry, new_artifact: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, beaten = validation.check_files, iter([True, True, False, False])

    def check_files(*arguments: Any) -> None:
        real(*arguments)
        if next(beaten):
            end_leases(registry)
            registry.collect_garbage(grace_s=0)

    directory = new_artifact()
    monkeypatch.setattr(validation, "check_files", check_files)
    version = transfer.push(registry, directory, NAME).version
    assert next(beaten) is False
    assert registry.verify(f"{NAME}@{version.digest}").problems == ()


def test_a_version_that_is_published_beside_a_sweep_keeps_its_blobs(
    registry: EmbeddedRegistry, home: Home, new_artifact: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Between the collector's look at the roots and its transaction a publish comes, and its leases end at once.
    directory = new_artifact()
    upload_all(registry, directory)
    end_leases(registry)
    sweep, published = Collector._sweep, list[str]()

    def late(self: Collector, garbage: Sequence[StoredBlob]) -> Sequence[StoredBlob]:
        assert len(garbage) == 3
        published.append(transfer.push(registry, directory, NAME).version.digest)
        end_leases(registry)
        return sweep(self, garbage)

    monkeypatch.setattr(Collector, "_sweep", late)
    other = EmbeddedRegistry(home)
    assert other.collect_garbage(grace_s=0).removed_blobs == 0
    other.close()
    assert registry.verify(f"{NAME}@{published[0]}").problems == ()


@only_on_disk
def test_nobody_publishes_while_a_batch_is_deleted(
    registry: EmbeddedRegistry,
    interrupted: tuple[EmbeddedRegistry, Interrupting],
    tmp_path: Path,
) -> None:
    collector, store = interrupted
    put(registry, b"garbage", tmp_path)
    locked: list[bool] = []

    def look() -> None:
        catalog = type(registry._catalog)(Path(registry._catalog.where), busy_timeout_s=0.05)
        try:
            with pytest.raises(Exception, match="locked"), catalog.write():
                pass
            locked.append(True)
        finally:
            catalog.close()

    store.before_delete = look
    assert collector.collect_garbage(grace_s=0).removed_blobs == 1
    assert locked == [True]


def test_nothing_is_collected_while_a_backup_needs_it(registry: EmbeddedRegistry, tmp_path: Path) -> None:
    put(registry, b"garbage", tmp_path)
    with holds.held(registry._catalog) as hold:
        hold.keep()
        with pytest.raises(PreconditionError, match="backup") as refused:
            registry.collect_garbage(grace_s=0)
        assert refused.value.reason == "COLLECTION_HELD"
        assert registry.collect_garbage(dry_run=True, grace_s=0).removed_blobs == 1
    assert registry.collect_garbage(grace_s=0).removed_blobs == 1


def test_a_backup_that_begins_in_the_middle_of_a_collection_ends_it(
    registry: EmbeddedRegistry, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = put(registry, b"garbage", tmp_path)
    sweep, backup = Collector._sweep, holds.Hold(registry._catalog)

    def late(self: Collector, garbage: Sequence[StoredBlob]) -> Sequence[StoredBlob]:
        backup.keep()
        return sweep(self, garbage)

    monkeypatch.setattr(Collector, "_sweep", late)
    with pytest.raises(PreconditionError, match="backup"):
        registry.collect_garbage(grace_s=0)
    assert held(registry) == {digest}


def test_a_hold_that_a_killed_backup_left_ends(registry: EmbeddedRegistry, tmp_path: Path) -> None:
    put(registry, b"garbage", tmp_path)
    with registry._catalog.write() as connection:
        ended = str(records.now_us() - 1)
        connection.execute(t.settings.insert().values(key=holds.PREFIX + "0", value=ended))
    assert registry.collect_garbage(grace_s=0).removed_blobs == 1
    with registry._catalog.read() as connection:
        keys = connection.execute(sa.select(t.settings.c.key)).scalars().all()
    assert keys == ["schema_version"]


def test_only_administrators_of_the_whole_collect(registry: EmbeddedRegistry) -> None:
    somebody = Principal("ci", frozenset({Scope.ADMIN}), frozenset({"team"}))
    with pytest.raises(ForbiddenError):
        registry.acting_as(somebody).collect_garbage(dry_run=True)
    with pytest.raises(UnauthenticatedError):
        registry.acting_as(NOBODY).collect_garbage()


KILLED = """
import os, signal, sys
from weft_registry.blobs.local import LocalBlobStore
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home

when = sys.argv[1]
real = LocalBlobStore.delete_blobs

def dying(self, digests):
    real(self, {"before": [], "within": digests[:2], "after": digests}[when])
    os.kill(os.getpid(), signal.SIGKILL)

LocalBlobStore.delete_blobs = dying
EmbeddedRegistry(Home.from_environment()).collect_garbage(grace_s=0)
"""


@only_on_disk
@pytest.mark.parametrize(("when", "left"), [("before", 4), ("within", 2), ("after", 0)])
def test_a_killed_collection_leaves_a_whole_registry_and_can_be_done_again(
    when: str, left: int, home: Home, new_artifact: Callable[..., Path], tmp_path: Path
) -> None:
    registry = EmbeddedRegistry(home)
    version = transfer.push(registry, new_artifact(), NAME).version
    for i in range(4):
        put(registry, bytes([i]), tmp_path)
    end_leases(registry)
    registry.close()

    process = python(KILLED, when, home=home)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (-signal.SIGKILL, "")

    registry = EmbeddedRegistry(home)
    assert registry.verify(f"{NAME}@{version.digest}").problems == ()
    assert registry.collect_garbage(grace_s=0).removed_blobs == left
    assert held(registry) == {file.sha256 for file in version.manifest.files}
    registry.close()
