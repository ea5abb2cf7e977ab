"""An S3 server that refuses, fails, hangs and truncates: waited for within bounds, told clearly, never believed."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import obstore
import pytest

from tests.backends.proxy import Proxy
from tests.registry.lab import make_artifact
from weft_registry import digest as digests
from weft_registry import transfer
from weft_registry.blobs.bucket import Bucket, Patience
from weft_registry.blobs.object import ObjectBlobStore
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import CorruptionError, PreconditionError, UnavailableError
from weft_registry.home import Home
from weft_registry.reference import AdapterName
from weft_registry.storage import Storage

DATA = os.urandom(20 * (1 << 20) + 17)
DIGEST = digests.of_bytes(DATA)
PATIENCE = Patience(failing_s=3.0)


@pytest.fixture
def direct(place: str, tmp_path: Path) -> ObjectBlobStore:
    """The same place without the proxy: what really is there."""
    return ObjectBlobStore(Bucket.at(place), tmp_path / "direct")


@pytest.fixture
def store(place: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectBlobStore:
    with monkeypatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        return ObjectBlobStore(Bucket.at(place, PATIENCE), tmp_path / "staging")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(DATA)
    return path


FAULTS = ["refuses", "answers 500", "answers 503"]


def inject(proxy: Proxy, fault: str, count: int) -> None:
    """The next `count` connections go wrong; -1 is all of them."""
    if fault == "refuses":
        proxy.faults.refuse = count
    else:
        proxy.faults.status = int(fault.rpartition(" ")[2])
        proxy.faults.fail = count


@pytest.mark.parametrize("fault", FAULTS)
def test_what_passes_is_waited_for(
    fault: str, proxy: Proxy, store: ObjectBlobStore, direct: ObjectBlobStore, source: Path
) -> None:
    """Putting in parts, asking, reading, listing and deleting each meet the fault once."""

    def break_once() -> None:
        inject(proxy, fault, 1)

    break_once()
    store.put_file(source, DIGEST, len(DATA))
    assert direct.verify(DIGEST) == len(DATA)
    break_once()
    assert store.missing([DIGEST]) == []
    break_once()
    assert b"".join(store.read(DIGEST)) == DATA
    break_once()
    assert [blob.digest for blob in store.list_blobs()] == [DIGEST]
    break_once()
    store.delete_blobs([DIGEST])
    assert direct.missing([DIGEST]) == [DIGEST]


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_pass_is_told_within_a_bound_and_leaves_nothing(
    fault: str, proxy: Proxy, store: ObjectBlobStore, direct: ObjectBlobStore, source: Path
) -> None:
    store.check_access()
    inject(proxy, fault, -1)
    for attempt in (
        lambda: store.put_file(source, DIGEST, len(DATA)),
        lambda: store.missing([DIGEST]),
        lambda: store.verify(DIGEST),
        lambda: list(store.list_blobs()),
        lambda: store.delete_blobs([DIGEST]),
    ):
        start = time.monotonic()
        with pytest.raises(UnavailableError) as caught:
            attempt()
        assert time.monotonic() - start < 30.0
        assert (caught.value.reason, caught.value.retry_after_s) == ("BLOBS_UNREACHABLE", 5.0)
        assert "s3://" in caught.value.message
        assert "Debug" not in caught.value.message
    assert direct.missing([DIGEST]) == [DIGEST]
    inject(proxy, fault, 0)
    store.put_file(source, DIGEST, len(DATA))
    assert direct.verify(DIGEST) == len(DATA)


def test_a_server_that_takes_requests_and_never_answers_is_given_up(
    place: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    store = ObjectBlobStore(Bucket.at(place, Patience(idle_s=3.0, failing_s=5.0)), tmp_path / "staging")
    store.check_access()
    small = tmp_path / "small"
    small.write_bytes(b"small")
    digest = digests.of_bytes(b"small")
    proxy.faults.silent = 1
    store.put_file(small, digest, 5)
    assert proxy.faults.silent == 0
    assert list(store.read(digest)) == [b"small"]
    proxy.faults.silent = -1
    start = time.monotonic()
    with pytest.raises(UnavailableError) as caught:
        store.verify(digest)
    assert caught.value.reason == "BLOBS_UNREACHABLE"
    assert time.monotonic() - start < 60.0


def test_a_truncated_answer_goes_on_where_it_ended(
    proxy: Proxy, store: ObjectBlobStore, direct: ObjectBlobStore, source: Path
) -> None:
    direct.put_file(source, DIGEST, len(DATA))
    proxy.faults.truncate, proxy.faults.truncate_after = 5, 3 << 20
    before = proxy.requests
    assert b"".join(store.read(DIGEST)) == DATA
    assert proxy.faults.truncate == 0
    assert proxy.requests - before < 12  # Not from the beginning each time.
    proxy.faults.truncate, proxy.faults.truncate_after = 3, 2 << 20
    assert store.verify(DIGEST) == len(DATA)
    with store.open(DIGEST) as file:
        file.seek(5 << 20)
        proxy.faults.truncate, proxy.faults.truncate_after = 1, 1000
        assert file.read(1 << 20) == DATA[5 << 20 : 6 << 20]


def test_answers_that_bring_nothing_end_in_unavailable_and_not_in_a_short_file(
    proxy: Proxy, store: ObjectBlobStore, direct: ObjectBlobStore, source: Path
) -> None:
    direct.put_file(source, DIGEST, len(DATA))
    proxy.faults.truncate, proxy.faults.truncate_after = -1, 100
    given = bytearray()

    def read() -> None:
        for chunk in store.read(DIGEST):
            given.extend(chunk)

    with pytest.raises(UnavailableError):
        read()
    assert len(given) < len(DATA)
    assert DATA.startswith(bytes(given))


def test_a_slow_server_is_slow_and_nothing_else(
    proxy: Proxy, store: ObjectBlobStore, direct: ObjectBlobStore, source: Path
) -> None:
    proxy.faults.delay_s = 0.5
    store.put_file(source, DIGEST, len(DATA))
    assert b"".join(store.read(DIGEST)) == DATA


def test_an_object_with_other_bytes_is_never_given_whole(
    store: ObjectBlobStore, direct: ObjectBlobStore, place: str, source: Path
) -> None:
    direct.put_file(source, DIGEST, len(DATA))
    assert store.verify(DIGEST) == len(DATA)
    assert b"".join(store.read(DIGEST, 5, 10)) == DATA[5:15]
    key = f"blobs/sha256/{DIGEST[7:9]}/{DIGEST[7:]}"
    obstore.put(Bucket.at(place).store, key, DATA[:-1] + bytes([DATA[-1] ^ 1]))
    with pytest.raises(CorruptionError):
        store.verify(DIGEST)
    with pytest.raises(CorruptionError):
        list(store.read(DIGEST))
    # That these bytes were right once, as another object, proves nothing of this one.
    with pytest.raises(CorruptionError):
        list(store.read(DIGEST, 5, 10))


def test_an_upload_whose_end_fails_is_finished_later(
    proxy: Proxy, store: ObjectBlobStore, direct: ObjectBlobStore
) -> None:
    upload = store.start_upload(DIGEST, len(DATA)).upload_id
    store.write_upload(upload, 0, DATA)
    proxy.faults.fail = -1
    with pytest.raises(UnavailableError):
        store.finish_upload(upload)
    proxy.faults.fail = 0
    state = store.query_upload(upload)
    assert (state.committed_bytes, state.complete) == (len(DATA), False)
    assert store.finish_upload(upload).complete
    assert direct.verify(DIGEST) == len(DATA)
    assert not list((store._uploads).iterdir())


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "BLOBS_CREDENTIALS"),
        ("AWS_ACCESS_KEY_ID", "nobody", "BLOBS_CREDENTIALS"),
        ("AWS_ENDPOINT_URL", "127.0.0.1:1", "BLOBS_ENDPOINT"),
    ],
)
def test_what_only_an_operator_can_change_is_told_at_once(
    variable: str, value: str, reason: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    start = time.monotonic()
    with pytest.raises(PreconditionError, match="AWS_") as caught:
        ObjectBlobStore(Bucket.at(place), tmp_path / "staging").missing([DIGEST])
    assert caught.value.reason == reason
    assert "not-a-secret" not in caught.value.message
    assert time.monotonic() - start < 5.0


def test_a_bucket_that_is_not_there_is_no_empty_one(place: str, tmp_path: Path) -> None:
    store = ObjectBlobStore(Bucket.at("s3://no-such-bucket/prefix"), tmp_path / "staging")
    for attempt in (lambda: store.missing([DIGEST]), lambda: store.size(DIGEST), store.check_access):
        with pytest.raises(PreconditionError, match="no such bucket") as caught:
            attempt()
        assert caught.value.reason == "BLOBS_NO_BUCKET"


def test_publishes_through_a_failing_server_are_whole_or_not_there(
    place: str, proxy: Proxy, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two publishers, while the server misbehaves in every way at random moments; afterwards all that was acknowledged
    is there, and nothing is wrong with anything that is."""
    stop = threading.Event()
    acknowledged: list[str] = []
    refused: list[Exception] = []
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    registries = [EmbeddedRegistry(Home(tmp_path / f"home{i}"), None, Storage(database, place)) for i in range(2)]

    def misbehave() -> None:
        turn = 0
        while not stop.wait(0.15):
            turn += 1
            name = ("refuse", "fail", "truncate")[turn % 3]
            setattr(proxy.faults, name, 2)

    def publish(index: int) -> None:
        for seed in range(6):
            directory = make_artifact(tmp_path / f"artifact-{index}-{seed}", seed=seed, readme=f"Card of {index}.\n")
            try:
                version = transfer.push(registries[index], directory, AdapterName("team", f"a{index}")).version
                acknowledged.append(f"{version.adapter}@{version.digest}")
            except UnavailableError as error:
                refused.append(error)

    threads = [threading.Thread(target=publish, args=(index,)) for index in range(2)]
    spoiler = threading.Thread(target=misbehave)
    for thread in (*threads, spoiler):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    spoiler.join()
    proxy.faults.refuse = proxy.faults.fail = proxy.faults.truncate = 0
    assert len(acknowledged) + len(refused) == 12
    assert len(acknowledged) >= 6  # Most of it passes within the patience.
    for reference in acknowledged:
        assert registries[0].verify(reference).problems == ()
    held = {blob.digest for blob in registries[1].blobs.list_blobs()}
    assert all(registries[1].blobs.verify(digest) >= 0 for digest in held)
    for registry in registries:
        registry.close()
