"""A mirror with a bound: what was read least recently goes, nobody is torn from what they read, and all of it comes
again; and what only the mirror has stays."""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from tests.registry.blob_lab import DATA, DIGEST, BucketLab
from tests.registry.mirror_lab import NAME, UpstreamServer, eventually, publish
from weft_client.cli.app import app
from weft_registry import digest as digests
from weft_registry import transfer
from weft_registry.catalog import held, mirrored, records
from weft_registry.catalog import tables as t
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import (
    CorruptionError,
    ExhaustedError,
    InvalidInputError,
    NotFoundError,
    OffsetError,
    PreconditionError,
    UnavailableError,
)
from weft_registry.home import Home
from weft_registry.mirror import room as rooms
from weft_registry.mirror import stock
from weft_registry.mirror.registry import MirrorRegistry
from weft_registry.mirror.upstream import UnreachableError, Upstream
from weft_registry.remote.registry import RemoteRegistry
from weft_registry.serve.options import RegistryServeOptions
from weft_registry.serve.serving import running
from weft_registry.upkeep import dump, holds

NewArtifact = Callable[..., Path]
OpenMirror = Callable[[int | None], MirrorRegistry]
SIZE = 100_000
"""Of every file that is read here, in bytes."""


@pytest.fixture(autouse=True)
def _no_two_moments_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read later was read later, however coarse the machine's clock is."""
    real, lock, last = records.now_us, threading.Lock(), [0]

    def now_us() -> int:
        with lock:
            last[0] = max(last[0] + 1, real())
            return last[0]

    monkeypatch.setattr(records, "now_us", now_us)


@pytest.fixture
def open_mirror(upstream: UpstreamServer, home: Home) -> Iterator[OpenMirror]:
    """Opens a mirror that holds so many files at most (None: no bound), as another process would, and closes them."""
    opened: list[MirrorRegistry] = []

    def begin(files: int | None) -> MirrorRegistry:
        bound = None if files is None else files * SIZE
        opened.append(MirrorRegistry(home, Upstream(upstream.target, ask_s=10.0, retry_s=0.0), None, None, bound))
        return opened[-1]

    yield begin
    for mirror in opened:
        mirror.close()


@pytest.fixture
def files(origin: EmbeddedRegistry, new_artifact: NewArtifact) -> list[str]:
    """The digests of six files of the upstream, each of one version."""
    found = []
    for letter in "abcdef":
        version = publish(origin, new_artifact(notes=letter * SIZE))
        found += [file.sha256 for file in version.manifest.files if file.path == "notes.txt"]
    assert found == [digests.of_bytes(letter.encode() * SIZE) for letter in "abcdef"]
    return found


def fetch(mirror: MirrorRegistry, digest: str) -> bytes:
    """Reads a file, and returns once it is stored, if it was to be."""
    mirror.list_versions(NAME)
    return b"".join(mirror.read_blob(digest, 0, SIZE))


def held_of(mirror: MirrorRegistry, files: list[str]) -> set[int]:
    missing = set(mirror.blobs.missing(files))
    return {number for number, digest in enumerate(files) if digest not in missing}


def counted(mirror: MirrorRegistry) -> int:
    with mirror._catalog.read() as connection:
        return held.total_bytes(connection)


def evicted(mirror: MirrorRegistry) -> rooms.Evicted:
    assert mirror.room is not None
    return mirror.room.evicted


def put(mirror: MirrorRegistry, path: Path, data: bytes) -> str:
    """Puts a blob into a mirror's store behind its back."""
    path.write_bytes(data)
    digest = digests.of_bytes(data)
    store_of(mirror).put_file(path, digest, len(data))
    return digest


def store_of(mirror: MirrorRegistry) -> Any:
    return mirror.blobs._held  # type: ignore[attr-defined]


def test_what_was_read_least_recently_goes_first_and_comes_again(
    open_mirror: OpenMirror, upstream: UpstreamServer, files: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    mirror = open_mirror(3)
    for number in (0, 1, 2, 0):
        fetch(mirror, files[number])
    assert held_of(mirror, files) == {0, 1, 2}
    with caplog.at_level(logging.WARNING):
        assert fetch(mirror, files[3]) == b"d" * SIZE
    assert held_of(mirror, files) == {0, 2, 3}
    assert counted(mirror) == 3 * SIZE
    assert evicted(mirror) == rooms.Evicted(1, SIZE)
    assert f"evicted 1 blobs of {SIZE} bytes" in caplog.text
    upstream.calls.clear()
    assert fetch(mirror, files[1]) == b"b" * SIZE
    assert upstream.calls["ReadBlob"] == 1
    assert held_of(mirror, files) == {0, 1, 3}
    assert evicted(mirror) == rooms.Evicted(2, 2 * SIZE)


def test_without_a_bound_nothing_goes_and_nothing_is_written_down(open_mirror: OpenMirror, files: list[str]) -> None:
    mirror = open_mirror(None)
    for digest in files:
        fetch(mirror, digest)
    assert held_of(mirror, files) == {0, 1, 2, 3, 4, 5}
    assert (mirror.room, counted(mirror)) == (None, 0)


def test_who_read_what_outlives_the_process(open_mirror: OpenMirror, files: list[str]) -> None:
    before = open_mirror(3)
    for number in (0, 1, 2, 0):
        fetch(before, files[number])
    before.close()
    after = open_mirror(3)
    fetch(after, files[3])
    assert held_of(after, files) == {0, 2, 3}


def test_what_was_held_before_there_was_a_bound_counts(open_mirror: OpenMirror, files: list[str]) -> None:
    before = open_mirror(None)
    for digest in files[:4]:
        fetch(before, digest)
    before.close()
    after = open_mirror(2)
    # A file goes before it is no longer counted.
    eventually(lambda: (len(held_of(after, files)), counted(after)) == (2, 2 * SIZE))
    fetch(after, files[5])
    assert len(held_of(after, files)) == 2
    assert 5 in held_of(after, files)


def test_what_others_put_into_the_store_counts_and_what_they_take_from_it_does_not(
    open_mirror: OpenMirror, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "COUNT_S", 0.0)
    mirror = open_mirror(3)
    room = mirror.room
    assert room is not None
    for digest in files[:3]:
        fetch(mirror, digest)
    put(mirror, tmp_path / "more", b"z" * SIZE)
    room.fit()
    assert held_of(mirror, files) == {1, 2}
    assert counted(mirror) == 3 * SIZE
    store_of(mirror).delete_blobs([files[1]])
    room.fit()
    assert counted(mirror) == 3 * SIZE, "what came lately may be on its way into the store"
    monkeypatch.setattr(stock, "_STORING_US", -1_000_000_000)
    room.fit()
    assert counted(mirror) == 2 * SIZE


def test_two_fetches_at_once_do_not_take_the_same_room(
    open_mirror: OpenMirror, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are let in before either of them is stored."""
    mirror = open_mirror(3)
    for digest in files[:2]:
        fetch(mirror, digest)
    store, both = store_of(mirror), threading.Barrier(2)
    put_file = store.put_file

    def together(*arguments: Any) -> None:
        both.wait(60)
        put_file(*arguments)

    monkeypatch.setattr(store, "put_file", together)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda digest: fetch(mirror, digest), files[2:4])) == [b"c" * SIZE, b"d" * SIZE]
    assert held_of(mirror, files) == {1, 2, 3}
    assert counted(mirror) == 3 * SIZE


def test_what_is_larger_than_the_bound_is_served_and_not_kept(
    open_mirror: OpenMirror, home: Home, files: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    mirror = open_mirror(0)
    mirror.list_versions(NAME)
    assert b"".join(mirror.read_blob(files[0])) == b"a" * SIZE
    assert b"".join(mirror.read_blob(files[1], SIZE - 10, 0)) == b"b" * 10
    assert b"".join(mirror.read_blob(files[1], 7, 11)) == b"b" * 11
    with pytest.raises(OffsetError):
        mirror.read_blob(files[1], SIZE + 1, 0)
    with mirror.open_blob(files[2]) as file:
        assert file.read() == b"c" * SIZE
        file.seek(5)
        assert file.read(3) == b"ccc"
    assert mirror.verify_blob(files[3]) == SIZE
    eventually(lambda: not any((home.registry / "fetching").iterdir()))
    assert held_of(mirror, files) == set()
    assert counted(mirror) == 0
    assert "is given on and not kept" in caplog.text


def test_what_is_open_here_does_not_go(open_mirror: OpenMirror, files: list[str]) -> None:
    mirror = open_mirror(2)
    for digest in files[:2]:
        fetch(mirror, digest)
    chunks = mirror.read_blob(files[0])
    fetch(mirror, files[1])
    fetch(mirror, files[2])
    assert held_of(mirror, files) == {0, 2}, "one is younger, and goes"
    file = mirror.open_blob(files[2])
    assert fetch(mirror, files[3]) == b"d" * SIZE, "served, though nothing may go for it"
    assert held_of(mirror, files) == {0, 2}
    assert counted(mirror) == 2 * SIZE
    assert b"".join(chunks) == b"a" * SIZE
    assert file.read() == b"c" * SIZE
    file.close()
    del chunks, file
    fetch(mirror, files[4])
    fetch(mirror, files[5])
    assert held_of(mirror, files) == {4, 5}


def test_a_fetch_that_is_being_stored_does_not_go(
    open_mirror: OpenMirror, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = open_mirror(1)
    fetch(mirror, files[0])
    store, entered, go_on = store_of(mirror), threading.Event(), threading.Event()
    put_file = store.put_file

    def slowly(*arguments: Any) -> None:
        entered.set()
        assert go_on.wait(60)
        put_file(*arguments)

    monkeypatch.setattr(store, "put_file", slowly)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(fetch, mirror, files[1])
        assert entered.wait(60)
        assert fetch(mirror, files[2]) == b"c" * SIZE
        go_on.set()
        assert slow.result(60) == b"b" * SIZE
    assert held_of(mirror, files) == {1}
    assert counted(mirror) == SIZE


def test_what_another_process_reads_goes_last(open_mirror: OpenMirror, files: list[str]) -> None:
    mirror, other = open_mirror(2), open_mirror(2)
    for digest in files[:2]:
        fetch(mirror, digest)
    reading = other.read_blob(files[0])
    assert mirror.room is not None
    assert other.room is not None
    # One is read later; but what is still being read is noted as read whenever reads are.
    fetch(mirror, files[1])
    mirror.room.flush()
    other.room.flush()
    fetch(mirror, files[2])
    assert held_of(mirror, files) == {0, 2}
    assert b"".join(reading) == b"a" * SIZE


def test_what_another_process_had_go_before_the_first_byte_is_brought_again(
    open_mirror: OpenMirror, files: list[str]
) -> None:
    mirror = open_mirror(2)
    fetch(mirror, files[0])
    chunks = mirror.read_blob(files[0])
    store_of(mirror).delete_blobs([files[0]])
    assert b"".join(chunks) == b"a" * SIZE


def test_a_read_in_a_bucket_whose_object_goes_can_be_tried_again(tmp_path: Path) -> None:
    """The client of another process then goes on where it was: `UnavailableError` is what clients try again."""
    lab = BucketLab(tmp_path / "local")
    (tmp_path / "data").write_bytes(DATA)
    lab.store.put_file(tmp_path / "data", DIGEST, len(DATA))
    with lab.store.open(DIGEST) as file:
        assert file.read(10) == DATA[:10]
        lab.store.delete_blobs([DIGEST])
        file.seek(len(DATA) - 10)
        with pytest.raises(UnavailableError, match="was deleted while it was read"):
            file.read(10)


def test_what_only_this_registry_has_never_goes(
    open_mirror: OpenMirror, files: list[str], home: Home, tmp_path: Path
) -> None:
    """A branch, and what somebody was about to publish, from before it was a mirror: even where the upstream has the
    same bytes, since nobody promised that it will have them for as long."""
    branched, leased = b"a" * SIZE, b"b" * SIZE
    with closing(EmbeddedRegistry(home)) as before:
        for data in (branched, leased):
            (tmp_path / "own").write_bytes(data)
            before.upload(tmp_path / "own", digests.of_bytes(data), SIZE, adapter=NAME)
        with before._catalog.write() as connection:
            adapter = {"namespace": "acme", "name": "own", "created_at_us": 0}
            key = connection.execute(t.adapters.insert().values(adapter)).inserted_primary_key
            assert key is not None
            row = {"adapter_id": key[0], "branch": "main", "path": "own", "size_bytes": SIZE}
            connection.execute(t.branch_files.insert().values(**row, sha256=files[0]))
            connection.execute(t.blob_leases.delete().where(t.blob_leases.c.sha256 == files[0]))
    mirror = open_mirror(3)
    for digest in files:
        fetch(mirror, digest)
    assert held_of(mirror, files) == {0, 1, 5}
    assert counted(mirror) == 3 * SIZE


def test_what_no_version_has_never_goes_and_is_collected(
    open_mirror: OpenMirror, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "COUNT_S", 0.0)
    mirror = open_mirror(2)
    assert mirror.room is not None
    stray = put(mirror, tmp_path / "stray", b"s" * SIZE)
    mirror.room.fit()
    for digest in files[:3]:
        fetch(mirror, digest)
    assert held_of(mirror, [*files, stray]) == {2, 6}
    assert mirror.collect_garbage(grace_s=0.0).removed_blobs == 1
    assert counted(mirror) == SIZE
    fetch(mirror, files[3])
    assert held_of(mirror, [*files, stray]) == {2, 3}


def test_while_a_backup_reads_nothing_goes(open_mirror: OpenMirror, files: list[str]) -> None:
    mirror = open_mirror(2)
    for digest in files[:2]:
        fetch(mirror, digest)
    with holds.held(mirror._catalog):
        assert fetch(mirror, files[2]) == b"c" * SIZE
        assert held_of(mirror, files) == {0, 1}
    fetch(mirror, files[2])
    assert held_of(mirror, files) == {1, 2}


def test_a_blob_that_could_not_be_stored_takes_no_room(
    open_mirror: OpenMirror, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = open_mirror(2)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(store_of(mirror), "put_file", full)
        with pytest.raises(ExhaustedError) as caught:
            fetch(mirror, files[0])
    assert caught.value.reason == "DISK_FULL"
    assert counted(mirror) == 0
    fetch(mirror, files[0])
    assert counted(mirror) == SIZE


def test_a_check_and_a_collection_miss_nothing_and_a_backup_says_what_it_said(
    open_mirror: OpenMirror, files: list[str], home: Home, tmp_path: Path
) -> None:
    mirror = open_mirror(2)
    mirror.list_versions(NAME)
    with closing(EmbeddedRegistry(home)) as here:
        with pytest.raises(CorruptionError, match="there is no backup of this registry as it is") as never_fetched:
            here.backup(tmp_path / "first")
        for digest in files[:4]:
            fetch(mirror, digest)
        assert held_of(mirror, files) == {2, 3}
        for registry in (mirror, here):
            *_, last = registry.check()
            assert (last.done, last.problems, last.checked_bytes) == (True, (), 2 * SIZE)
            assert registry.collect_garbage(grace_s=0.0).removed_blobs == 0
        with pytest.raises(CorruptionError, match="there is no backup of this registry as it is") as after:
            here.backup(tmp_path / "second")
    assert after.value.reason == never_fetched.value.reason == "BLOB_NOT_FOUND"


def test_what_is_held_is_of_its_store_and_not_in_a_backup() -> None:
    assert t.held_blobs not in dump.TABLES


def test_a_check_does_not_count_as_a_read(open_mirror: OpenMirror, files: list[str]) -> None:
    mirror = open_mirror(2)
    for digest in files[:2]:
        fetch(mirror, digest)
    mirror.verify_blob(files[0])
    fetch(mirror, files[2])
    assert held_of(mirror, files) == {1, 2}


def test_with_the_upstream_away_what_went_is_as_what_never_came(
    open_mirror: OpenMirror, upstream: UpstreamServer, files: list[str]
) -> None:
    mirror = open_mirror(1)
    for digest in files[:2]:
        fetch(mirror, digest)
    upstream.stop()
    assert b"".join(mirror.read_blob(files[1])) == b"b" * SIZE
    for digest in (files[0], files[5]):
        with pytest.raises(UnreachableError) as caught:
            b"".join(mirror.read_blob(digest))
        assert caught.value.reason == "UPSTREAM_UNREACHABLE"
    assert held_of(mirror, files) == {1}


def test_what_was_deleted_upstream_goes_too_and_then_nobody_has_it(
    open_mirror: OpenMirror, origin: EmbeddedRegistry, files: list[str]
) -> None:
    mirror = open_mirror(1)
    fetch(mirror, files[0])
    first = next(one for one in mirror.list_versions(NAME) if files[0] in {file.sha256 for file in one.manifest.files})
    origin.delete_version(f"{NAME}@{first.digest}")
    with origin._catalog.write() as connection:
        connection.execute(t.blob_leases.delete())
    assert origin.collect_garbage(grace_s=0.0).removed_blobs > 0
    assert b"".join(mirror.read_blob(files[0])) == b"a" * SIZE, "as long as it is held"
    fetch(mirror, files[1])
    with pytest.raises(NotFoundError, match="has it no more"):
        b"".join(mirror.read_blob(files[0]))


def test_a_served_mirror_says_its_bound_and_what_goes(
    upstream: UpstreamServer,
    home: Home,
    files: list[str],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = RegistryServeOptions(
        port=0, http_port=0, grace_s=0.0, home=home, upstream=upstream.target, max_held_bytes=2 * SIZE
    )

    def pull(target: str) -> None:
        with closing(RemoteRegistry(target)) as remote:
            remote.list_versions(NAME)
            for digest, letter in zip(files, "abcdef", strict=True):
                assert b"".join(remote.read_blob(digest)) == letter.encode() * SIZE
                assert b"".join(remote.read_blob(digest, 0, 3)) == letter.encode() * 3

    async def serve() -> None:
        async with running(options) as server:
            await asyncio.to_thread(pull, server.address)

    asyncio.run(serve())
    assert f"mirror of {upstream.target}, holding at most {2 * SIZE} bytes" in capsys.readouterr().err
    assert "evicted 1 blobs" in caplog.text


def test_a_bound_without_an_upstream_is_a_wrong_setting(home: Home) -> None:
    ran = CliRunner().invoke(app, ["registry", "serve", "--max-held", "200GiB"])
    assert ran.exit_code == 2
    assert "--max-held needs --upstream" in ran.stderr

    async def serve() -> None:
        async with running(replace(RegistryServeOptions(home=home), max_held_bytes=1)):
            pass

    with pytest.raises(InvalidInputError, match="only a mirror"):
        asyncio.run(serve())


def test_nothing_is_published_behind_a_mirrors_back(
    open_mirror: OpenMirror, upstream: UpstreamServer, home: Home, new_artifact: NewArtifact
) -> None:
    """By a process that has its home, and does not know that it is a mirror's; or that opened it before it was one."""
    with closing(EmbeddedRegistry(home)) as before:
        directory = new_artifact()
        manifest = (directory / "adapter_manifest.json").read_bytes()
        for path in directory.iterdir():
            if path.name != "adapter_manifest.json":
                before.upload(path, digests.of_file(path), path.stat().st_size, adapter=NAME)
        open_mirror(None)
        with pytest.raises(PreconditionError, match=f"is a mirror of {upstream.target}, and is only read") as caught:
            before.publish(NAME, manifest)
        assert caught.value.reason == "READ_ONLY_MIRROR"
    with closing(EmbeddedRegistry(home)) as here:
        other = new_artifact(seed=1)
        with pytest.raises(PreconditionError, match=f"--registry {upstream.target}"):
            transfer.push(here, other, NAME)
        sent = [digests.of_file(path) for path in other.iterdir() if path.suffix == ".safetensors"]
        assert here.blobs.missing(sent) == sent, "refused before anything was sent"
        assert here.list_adapters() == []


def test_no_backup_is_restored_into_a_mirror_unasked(
    open_mirror: OpenMirror, origin: EmbeddedRegistry, files: list[str], home: Home, tmp_path: Path
) -> None:
    origin.backup(tmp_path / "backup")
    open_mirror(None).close()
    with closing(EmbeddedRegistry(home)) as here:
        with pytest.raises(PreconditionError, match="an upstream"):
            here.restore(tmp_path / "backup")
        here.restore(tmp_path / "backup", replace=True)
        assert len(here.list_versions(NAME)) == len(files)
        with here._catalog.read() as connection:
            assert not mirrored.is_mirror(connection)


def test_a_mirror_that_is_given_another_upstream_names_that_one(
    open_mirror: OpenMirror, upstream: UpstreamServer, home: Home
) -> None:
    open_mirror(None).close()
    with closing(MirrorRegistry(home, Upstream("127.0.0.1:1"))) as mirror, mirror._catalog.read() as connection:
        assert mirrored.upstream_of(connection) == "127.0.0.1:1"
        actions = connection.execute(sa.select(t.audit.c.subject).where(t.audit.c.action == "mirror")).scalars()
        assert list(actions) == [upstream.target, "127.0.0.1:1"]
