"""Backups: everything of one moment, on either database, in a directory or a file; damage is never passed on."""

from __future__ import annotations

import json
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.backends.fresh import SERVER, fresh_database, only_on_disk
from tests.registry.lab import python
from weft_registry import artifact, transfer
from weft_registry import digest as digests
from weft_registry.admin_api import Quota
from weft_registry.api import Version
from weft_registry.blobs.local import LocalBlobStore
from weft_registry.catalog import tables as t
from weft_registry.catalog.database import Catalog
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import CorruptionError, NotFoundError, PreconditionError, UnauthenticatedError
from weft_registry.home import Home
from weft_registry.principal import NOBODY
from weft_registry.reference import AdapterName
from weft_registry.storage import Storage
from weft_registry.upkeep import backup as backups
from weft_registry.upkeep import dump, holds
from weft_registry.upkeep import restore as restores
from weft_registry.upkeep.dump import Dump

NAME = AdapterName("team", "support")
PLACES = ["backup", "backup.tar"]


@contextmanager
def empty(tmp_path: Path, name: str = "other") -> Iterator[EmbeddedRegistry]:
    """Another registry, in files."""
    storage = Storage(f"sqlite:///{tmp_path}/{name}.db", f"file://{tmp_path}/{name}")
    with closing(EmbeddedRegistry(Home(tmp_path / name), storage=storage)) as registry:
        yield registry


def rows(catalog: Catalog) -> dict[str, list[Any]]:
    """All rows of what is backed up; not the holds of killed backups, nor what the audit log says of restores."""
    with catalog.read() as connection:
        found = {
            table.name: sorted(tuple(map(repr, row)) for row in connection.execute(sa.select(table)))
            for table in dump.TABLES
        }
        found["settings"] = [row for row in found["settings"] if holds.PREFIX not in row[0]]
        found["audit"] = [
            tuple(row) for row in connection.execute(sa.select(t.audit).where(t.audit.c.action != "restore"))
        ]
    return found


def problems(registry: EmbeddedRegistry) -> tuple[str, ...]:
    return list(registry.check())[-1].problems


@pytest.fixture
def versions(registry: EmbeddedRegistry, new_artifact: Callable[..., Path], tmp_path: Path) -> list[Version]:
    """A registry with something in every table that is backed up."""
    found = [
        transfer.push(registry, new_artifact(seed=seed), NAME, tags=[f"v{seed}"], aliases=["production"]).version
        for seed in (1, 2)
    ]
    registry.yank("team/support:v1", "said 'wrong' \u2028 \u00fc\n\"twice\"")
    registry.create_token("ci", ["publish"], ["team"], datetime.now(UTC) + timedelta(days=1))
    registry.set_quota(Quota("team", max_bytes=1 << 40))
    registry.protect_alias("team", "", "production", ["ci"])
    with registry._catalog.write() as connection:
        v = connection.execute(sa.select(t.versions.c.id)).scalars().first()
        connection.execute(
            t.signatures.insert().values(
                version_id=v, key_sha256="sha256:" + "5" * 64, bundle=bytes(range(256)), added_at_us=1, added_by="ci"
            )
        )
        metrics = [("exact_match", 0.1), ("loss", 1e-300), ("tiny", 5e-324)]
        connection.execute(
            t.version_metrics.insert(),
            [{"version_id": v, "name": name, "split": "test", "value": value} for name, value in metrics],
        )
        a = connection.execute(sa.select(t.adapters.c.id)).scalar_one()
        key = {"adapter_id": a, "branch": "work"}
        connection.execute(t.branches.insert().values(**key, head="0" * 40, updated_at_us=0))
        only = tmp_path / "only"
        only.write_bytes(b"only in a branch")
        digest = digests.of_file(only)
        connection.execute(t.branch_files.insert().values(**key, path="notes.md", sha256=digest, size_bytes=16))
    registry.blobs.put_file(only, digest, 16)
    return found


@pytest.mark.parametrize("place", PLACES)
def test_a_restored_registry_is_the_one_that_was_backed_up(
    place: str, registry: EmbeddedRegistry, versions: list[Version], tmp_path: Path
) -> None:
    assert all(rows(registry._catalog)[table.name] for table in dump.TABLES)
    report = registry.backup(tmp_path / place)
    with empty(tmp_path) as other:
        restored = other.restore(tmp_path / place)
        assert rows(other._catalog) == rows(registry._catalog)
        assert (restored.blobs, restored.blob_bytes) == (report.blobs, report.blob_bytes)
        assert restored.copied_blobs == report.copied_blobs == report.blobs == 5
        assert problems(other) == ()
        assert other.resolve("team/support:production") == registry.resolve("team/support:production")
        pulled = transfer.pull(other, "team/support:v2", tmp_path / "pulled")
        assert pulled.digest == versions[1].digest
        # What is added next gets the next ids.
        newest = other.audit_entries(action="restore")[0]
        assert newest.sequence == max(entry.sequence for entry in registry.audit_entries()) + 1
        assert json.loads(newest.detail_json)["rows"] == restored.rows


@pytest.mark.skipif(SERVER is None, reason="needs PostgreSQL: make test-backends")
@pytest.mark.parametrize("place", PLACES)
def test_a_backup_moves_a_registry_between_databases(
    place: str, registry: EmbeddedRegistry, versions: list[Version], tmp_path: Path, new_artifact: Callable[..., Path]
) -> None:
    assert SERVER is not None
    registry.backup(tmp_path / place)
    with empty(tmp_path) as files:
        files.restore(tmp_path / place)
        assert rows(files._catalog) == rows(registry._catalog)
        again = tmp_path / f"again-{place}"
        files.backup(again)
        with fresh_database(SERVER) as url:
            storage = Storage(url, f"file://{tmp_path}/third")
            with closing(EmbeddedRegistry(Home(tmp_path / "third"), storage=storage)) as third:
                third.restore(again)
                assert problems(third) == ()
                known = rows(third._catalog)
                for name, found in rows(files._catalog).items():
                    assert known[name] == found, name
                # Sequences go on behind what was restored.
                version = transfer.push(third, new_artifact(seed=9), NAME).version
                assert third.list_versions(NAME)[0] == version


def test_a_second_backup_copies_only_what_is_new(
    registry: EmbeddedRegistry, versions: list[Version], new_artifact: Callable[..., Path], tmp_path: Path
) -> None:
    place = tmp_path / "backup"
    first = registry.backup(place)
    assert registry.backup(place).copied_blobs == 0
    third = transfer.push(registry, new_artifact(seed=3), NAME).version
    report = registry.backup(place)
    weights = next(file for file in third.manifest.files if file.path == artifact.WEIGHTS)
    assert (report.blobs, report.copied_blobs, report.copied_bytes) == (first.blobs + 1, 1, weights.size)
    with empty(tmp_path) as other:
        other.restore(place)
        assert other.resolve("team/support").digest == third.digest


def test_a_backup_is_of_one_moment_while_others_publish_and_collect(
    registry: EmbeddedRegistry,
    versions: list[Version],
    new_artifact: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # After the catalog's moment everything is deleted and collected, and something else is published.
    real, happened = dump.write, list[str]()
    last = new_artifact(seed=7)

    def write(*arguments: Any) -> Any:
        header = real(*arguments)
        worker = threading.Thread(target=change)  # Another connection: this one's transaction is still open.
        worker.start()
        worker.join()
        return header

    def change() -> None:
        with registry._catalog.write() as connection:
            connection.execute(t.aliases.delete())
            connection.execute(t.tags.delete())
        for version in versions:
            registry.delete_version(f"{NAME}@{version.digest}")
        happened.append(transfer.push(registry, last, NAME).version.digest)
        with registry._catalog.write() as connection:
            connection.execute(t.blob_leases.delete())
        try:
            registry.collect_garbage(grace_s=0)
        except PreconditionError as error:
            happened.append(error.reason)

    monkeypatch.setattr(dump, "write", write)
    registry.backup(tmp_path / "backup")
    assert happened[1:] == ["COLLECTION_HELD"]
    monkeypatch.undo()
    with empty(tmp_path) as other:
        other.restore(tmp_path / "backup")
        assert problems(other) == ()
        assert {version.digest for version in other.list_versions(NAME, include_yanked=True)} == {
            version.digest for version in versions
        }
    assert registry.collect_garbage(grace_s=0).removed_blobs > 0


@pytest.mark.parametrize("place", PLACES)
def test_a_registry_that_is_not_empty_is_not_restored_over_unless_told(
    place: str, registry: EmbeddedRegistry, versions: list[Version], new_artifact: Callable[..., Path], tmp_path: Path
) -> None:
    registry.backup(tmp_path / place)
    with empty(tmp_path) as other:
        mine = transfer.push(other, new_artifact(seed=5), AdapterName("mine", "own")).version
        before = rows(other._catalog)
        with pytest.raises(PreconditionError, match="not empty") as refused:
            other.restore(tmp_path / place)
        assert refused.value.reason == "REGISTRY_NOT_EMPTY"
        assert rows(other._catalog) == before
        assert other.resolve("mine/own") == mine
        other.restore(tmp_path / place, replace=True)
        assert rows(other._catalog) == rows(registry._catalog)
        assert problems(other) == ()
        with pytest.raises(sa.exc.DatabaseError, match="only ever added to"), other._catalog.write() as connection:
            connection.execute(t.audit.delete())


def test_what_is_published_while_a_restore_copies_is_not_lost(
    registry: EmbeddedRegistry,
    versions: list[Version],
    new_artifact: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry.backup(tmp_path / "backup")
    directory = new_artifact(seed=5)
    with empty(tmp_path) as other:
        real, pushed = restores._put, list[Version]()

        def put(*arguments: Any) -> bool:
            if not pushed:
                pushed.append(transfer.push(other, directory, AdapterName("mine", "own")).version)
            return real(*arguments)

        monkeypatch.setattr(restores, "_put", put)
        with pytest.raises(PreconditionError, match="not empty"):
            other.restore(tmp_path / "backup")
        assert other.resolve("mine/own") == pushed[0]
        assert problems(other) == ()


def test_a_restore_over_itself_mends_what_was_damaged(
    registry: EmbeddedRegistry, versions: list[Version], tmp_path: Path
) -> None:
    registry.backup(tmp_path / "backup")
    weights = [file for file in versions[1].manifest.files if file.path == artifact.WEIGHTS]
    registry.blobs.delete_blobs([weights[0].sha256])
    assert problems(registry)
    assert registry.restore(tmp_path / "backup", replace=True).copied_blobs == 1
    assert problems(registry) == ()
    assert registry.resolve("team/support:v2").digest == versions[1].digest


@only_on_disk
def test_a_restore_replaces_a_damaged_blob(
    registry: EmbeddedRegistry, versions: list[Version], tmp_path: Path, home: Home
) -> None:
    registry.backup(tmp_path / "backup")
    path = next(path for path in (home.registry / "blobs").rglob("*") if path.is_file())
    path.chmod(0o644)
    path.write_bytes(b"damaged")
    registry.restore(tmp_path / "backup", replace=True)
    assert problems(registry) == ()


@only_on_disk
@pytest.mark.parametrize("place", PLACES)
def test_damage_is_not_backed_up(
    place: str, registry: EmbeddedRegistry, versions: list[Version], tmp_path: Path, home: Home
) -> None:
    path = next(path for path in (home.registry / "blobs").rglob("*") if path.is_file() and path.stat().st_size > 100)
    path.chmod(0o644)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"\0\1")
    with pytest.raises(CorruptionError, match="no backup of this registry as it is"):
        registry.backup(tmp_path / place)
    assert not (tmp_path / "backup.tar").exists()
    assert not (tmp_path / "backup" / "catalog.jsonl").exists()
    path.write_bytes(data)
    registry.backup(tmp_path / place)
    with empty(tmp_path) as other:
        other.restore(tmp_path / place)
        assert problems(other) == ()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip])
@pytest.mark.parametrize("what", ["catalog", "blob", "archive"])
def test_a_damaged_backup_is_refused_and_changes_nothing(
    what: str, damage: Callable[[Path], None], registry: EmbeddedRegistry, versions: list[Version], tmp_path: Path
) -> None:
    place = tmp_path / ("backup.tar" if what == "archive" else "backup")
    registry.backup(place)
    if what == "archive":
        damage(place)
        if damage is cut:
            place.write_bytes(place.read_bytes()[:-12000])  # Behind the last blob there is padding.
    elif what == "catalog":
        damage(place / "catalog.jsonl")
    else:
        blob = max((path for path in (place / "blobs").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
        damage(blob)
    with empty(tmp_path) as other:
        before = rows(other._catalog)
        with pytest.raises(CorruptionError):
            other.restore(place)
        assert rows(other._catalog) == before
        assert other.list_adapters() == []


@pytest.mark.parametrize("entry", ["catalog.jsonl/../../evil", "/tmp/evil", "link"])
def test_an_archive_of_somebody_elses_is_refused_and_writes_nothing(
    entry: str, registry: EmbeddedRegistry, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        member = tarfile.TarInfo("catalog.jsonl" if entry == "link" else entry)
        if entry == "link":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(CorruptionError, match=r"no whole backup: it does not begin with catalog\.jsonl"):
        registry.restore(tmp_path / "evil.tar")


def test_a_catalog_of_another_schema_is_refused_with_the_way_out(
    registry: EmbeddedRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("weft_registry.catalog.upgrade.HEAD", "0099")
        registry.backup(tmp_path / "backup")
    with empty(tmp_path) as other, pytest.raises(PreconditionError, match="0099, written by Weft") as refused:
        other.restore(tmp_path / "backup")
    assert refused.value.reason == "SCHEMA_MISMATCH"


def test_a_place_that_holds_something_else_is_left_alone(registry: EmbeddedRegistry, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").write_bytes(b"x")
    with pytest.raises(PreconditionError, match=r"one\.png"):
        registry.backup(tmp_path / "photos")
    (tmp_path / "there.tar").write_bytes(b"x")
    with pytest.raises(PreconditionError, match="there already"):
        registry.backup(tmp_path / "there.tar")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["one.png"]
    assert (tmp_path / "there.tar").read_bytes() == b"x"
    with pytest.raises(NotFoundError, match="no backup"):
        registry.restore(tmp_path / "photos")
    with pytest.raises(NotFoundError, match="no such backup"):
        registry.restore(tmp_path / "nowhere")


KILLED = """
import os, signal, sys
from pathlib import Path
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.upkeep import backup, backup_archive, backup_directory, restore

what, place, when = sys.argv[1:]
registry = EmbeddedRegistry(Home.from_environment())

def die_at(holder, name, call):
    real, count = getattr(holder, name), iter(range(100))
    def run(*arguments, **options):
        if next(count) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    setattr(holder, name, run)

if what == "backup":
    die_at(backup_directory.DirectoryWriter, "add", int(when))
    die_at(backup_archive.ArchiveWriter, "add", int(when))
    registry.backup(Path(place))
else:
    # "filled": in the transaction, after all rows.
    die_at(*(restore.audit, "record", 0) if when == "filled" else (restore, "_put", int(when)))
    registry.restore(Path(place), replace=True)
"""


@pytest.mark.parametrize("place", PLACES)
def test_a_killed_backup_leaves_the_earlier_one_and_can_be_done_again(
    place: str, registry: EmbeddedRegistry, home: Home, versions: list[Version], tmp_path: Path
) -> None:
    process = python(KILLED, "backup", str(tmp_path / place), "2", home=home)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (-9, "")
    with empty(tmp_path) as other, pytest.raises(NotFoundError):
        other.restore(tmp_path / place)
    # The killed one's hold keeps collection away for a while, and nothing else.
    with pytest.raises(PreconditionError, match="backup"):
        registry.collect_garbage(grace_s=0)
    report = registry.backup(tmp_path / place)
    assert report.copied_blobs == report.blobs - (2 if place == "backup" else 0)
    with empty(tmp_path, "third") as third:
        third.restore(tmp_path / place)
        assert rows(third._catalog) == rows(registry._catalog)
    assert not list(tmp_path.glob(".backup.tar*"))


@pytest.mark.parametrize("place", PLACES)
def test_a_killed_restore_leaves_the_registry_as_it_was_and_can_be_done_again(
    place: str, registry: EmbeddedRegistry, home: Home, versions: list[Version], tmp_path: Path
) -> None:
    registry.backup(tmp_path / place)
    saved = rows(registry._catalog)
    registry.set_quota(Quota("team", max_bytes=1))
    before = rows(registry._catalog)
    for when in ("0", "3", "filled"):
        process = python(KILLED, "restore", str(tmp_path / place), when, home=home)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (-9, "")
        assert rows(registry._catalog) == before
        assert problems(registry) == ()
    registry.restore(tmp_path / place, replace=True)
    assert rows(registry._catalog) == saved


def test_two_backups_do_not_write_into_one_place(
    registry: EmbeddedRegistry, versions: list[Version], tmp_path: Path
) -> None:
    for place in PLACES:
        with backups._place(tmp_path / place), pytest.raises(PreconditionError, match="another backup is writing"):
            registry.backup(tmp_path / place)


def test_a_dump_is_the_same_bytes_for_the_same_catalog(
    registry: EmbeddedRegistry, versions: list[Version], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft_registry.catalog.records.now_us", lambda: 1)
    for name in ("one", "two"):
        with registry._catalog.read() as connection:
            dump.write(connection, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    Dump(tmp_path / "one").verify()


def test_the_blobs_of_a_backup_are_laid_out_as_the_registrys_own(
    registry: EmbeddedRegistry, versions: list[Version], tmp_path: Path
) -> None:
    registry.backup(tmp_path / "backup")
    store = LocalBlobStore(tmp_path / "backup")
    assert {blob.digest for blob in store.list_blobs()} == {blob.digest for blob in registry.blobs.list_blobs()}


def test_only_administrators_back_up_and_restore(registry: EmbeddedRegistry, tmp_path: Path) -> None:
    view = registry.acting_as(NOBODY)
    with pytest.raises(UnauthenticatedError):
        view.backup(tmp_path / "backup")
    with pytest.raises(UnauthenticatedError):
        view.restore(tmp_path / "backup")
