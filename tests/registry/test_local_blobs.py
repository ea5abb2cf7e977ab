"""The blob store: whole and right, or not there; uploads go on where they broke."""

from __future__ import annotations

import fcntl
import os
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from tests.registry.lab import python
from weft_registry import digest as digests
from weft_registry.blobs.local import LocalBlobStore
from weft_registry.blobs.store import BlobLimits
from weft_registry.errors import (
    CorruptionError,
    ExhaustedError,
    InvalidInputError,
    NotFoundError,
    OffsetError,
)
from weft_registry.home import Home

DATA = os.urandom(3 * (1 << 20) + 17)
DIGEST = digests.of_bytes(DATA)


@pytest.fixture
def store(tmp_path: Path) -> LocalBlobStore:
    return LocalBlobStore(tmp_path / "store")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(DATA)
    return path


def blob_path(store_root: Path) -> Path:
    return store_root / "blobs" / "sha256" / DIGEST[7:9] / DIGEST[7:]


def files_in(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_what_is_put_is_read_back(store: LocalBlobStore, source: Path, tmp_path: Path) -> None:
    assert store.missing([DIGEST]) == [DIGEST]
    done: list[int] = []
    store.put_file(source, DIGEST, len(DATA), done.append)
    assert sum(done) == len(DATA)
    assert store.missing([DIGEST]) == []
    assert store.size(DIGEST) == store.verify(DIGEST) == len(DATA)
    chunks = list(store.read(DIGEST))
    assert b"".join(chunks) == DATA
    assert max(map(len, chunks)) <= 1 << 20
    assert blob_path(tmp_path / "store").stat().st_mode & 0o222 == 0
    assert files_in(tmp_path / "store") == [blob_path(tmp_path / "store")]


@pytest.mark.parametrize(
    ("offset", "limit"), [(0, 10), (5, 0), (1 << 20, 1 << 20), (len(DATA) - 3, 100), (len(DATA), 0)]
)
def test_a_part_is_that_part(store: LocalBlobStore, source: Path, offset: int, limit: int) -> None:
    store.put_file(source, DIGEST, len(DATA))
    end = offset + limit if limit else None
    assert b"".join(store.read(DIGEST, offset, limit)) == DATA[offset:end]


@pytest.mark.parametrize(("offset", "limit"), [(len(DATA) + 1, 0), (-1, 0), (0, -1)])
def test_a_part_outside_is_out_of_range(store: LocalBlobStore, source: Path, offset: int, limit: int) -> None:
    store.put_file(source, DIGEST, len(DATA))
    with pytest.raises(OffsetError, match=str(len(DATA))):
        list(store.read(DIGEST, offset, limit))


@pytest.mark.parametrize("damage", ["first byte", "last byte", "truncated", "longer"])
def test_a_damaged_blob_is_never_given_whole(store: LocalBlobStore, source: Path, tmp_path: Path, damage: str) -> None:
    store.put_file(source, DIGEST, len(DATA))
    path = blob_path(tmp_path / "store")
    path.chmod(0o644)
    flipped = {"first byte": 0, "last byte": len(DATA) - 1}
    if damage in flipped:
        at = flipped[damage]
        path.write_bytes(DATA[:at] + bytes([DATA[at] ^ 1]) + DATA[at + 1 :])
    else:
        path.write_bytes(DATA[:-1] if damage == "truncated" else DATA + b"x")
    given = bytearray()

    def read() -> None:
        for chunk in store.read(DIGEST):
            given.extend(chunk)

    with pytest.raises(CorruptionError, match=DIGEST):
        read()
    assert len(given) < len(DATA)
    with pytest.raises(CorruptionError):
        list(store.read(DIGEST, 5, 10))
    with pytest.raises(CorruptionError):
        store.verify(DIGEST)


def test_put_with_wrong_bytes_stores_nothing(store: LocalBlobStore, source: Path, tmp_path: Path) -> None:
    with pytest.raises(CorruptionError):
        store.put_file(source, digests.of_bytes(b"other"), len(DATA))
    with pytest.raises(CorruptionError):
        store.put_file(source, DIGEST, len(DATA) - 1)
    assert files_in(tmp_path / "store") == []


def test_sixteen_threads_putting_the_same_blob_leave_one(store: LocalBlobStore, source: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: store.put_file(source, DIGEST, len(DATA)), range(16)))
    assert store.verify(DIGEST) == len(DATA)
    assert files_in(tmp_path / "store") == [blob_path(tmp_path / "store")]


def test_an_upload_outlives_the_store_object_and_resumes(store: LocalBlobStore, tmp_path: Path) -> None:
    start = store.start_upload(DIGEST, len(DATA))
    assert (start.committed_bytes, start.complete) == (0, False)
    store.write_upload(start.upload_id, 0, DATA[:1000])
    again = LocalBlobStore(tmp_path / "store")
    resumed = again.start_upload(DIGEST, len(DATA))
    assert (resumed.upload_id, resumed.committed_bytes) == (start.upload_id, 1000)
    assert again.query_upload(start.upload_id).committed_bytes == 1000
    again.write_upload(start.upload_id, 1000, DATA[1000:])
    assert again.missing([DIGEST]) == [DIGEST]
    assert again.finish_upload(start.upload_id).complete
    assert b"".join(again.read(DIGEST)) == DATA
    assert again.start_upload(DIGEST, len(DATA)).complete
    assert again.query_upload(start.upload_id).complete


def test_a_gap_an_overlap_and_too_many_bytes_are_out_of_range(store: LocalBlobStore) -> None:
    upload = store.start_upload(DIGEST, len(DATA)).upload_id
    store.write_upload(upload, 0, DATA[:1000])
    for offset, chunk in ((999, b"x"), (1001, b"x"), (0, DATA[:1000]), (1000, DATA)):
        with pytest.raises(OffsetError) as caught:
            store.write_upload(upload, offset, chunk)
        assert caught.value.metadata["committed_bytes"] == "1000"
    with pytest.raises(OffsetError, match="send the rest"):
        store.finish_upload(upload)
    assert store.query_upload(upload).committed_bytes == 1000


def test_a_writer_that_waited_while_the_upload_was_finished_writes_nowhere(
    store: LocalBlobStore, tmp_path: Path
) -> None:
    upload = store.start_upload(DIGEST, len(DATA)).upload_id
    path = tmp_path / "store" / "uploads" / upload
    with ThreadPoolExecutor(1) as pool, path.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        late = pool.submit(store.write_upload, upload, 0, b"x")
        # Time enough to open the file; a writer that is slower than this finds no file at all, and is told the same.
        assert not wait([late], timeout=0.3).done
        path.rename(tmp_path / "blob")
        fcntl.flock(held, fcntl.LOCK_UN)
        with pytest.raises(NotFoundError):
            late.result(20)
    assert (tmp_path / "blob").read_bytes() == b""


def test_an_upload_of_wrong_bytes_stores_nothing_and_can_start_again(store: LocalBlobStore, tmp_path: Path) -> None:
    upload = store.start_upload(DIGEST, 4).upload_id
    store.write_upload(upload, 0, b"oops")
    with pytest.raises(CorruptionError):
        store.finish_upload(upload)
    assert files_in(tmp_path / "store") == []
    assert store.start_upload(DIGEST, 4).committed_bytes == 0


def test_an_empty_blob_can_be_uploaded(store: LocalBlobStore) -> None:
    empty = digests.of_bytes(b"")
    store.finish_upload(store.start_upload(empty, 0).upload_id)
    assert list(store.read(empty)) == []
    assert store.size(empty) == 0


def test_limits_are_kept_and_idle_uploads_make_room(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path / "store", BlobLimits(max_blob_bytes=100, max_open_uploads=2, upload_idle_s=60.0))
    with pytest.raises(ExhaustedError, match="at most 100"):
        store.start_upload(DIGEST, 101)
    first, second, third = (digests.of_bytes(bytes([i])) for i in range(3))
    store.start_upload(first, 1)
    idle = store.start_upload(second, 1).upload_id
    with pytest.raises(ExhaustedError) as caught:
        store.start_upload(third, 1)
    assert caught.value.retry_after_s is not None
    store.start_upload(second, 1)  # An open one is found again, whatever the limit.
    os.utime(tmp_path / "store" / "uploads" / idle, (0, 0))
    store.start_upload(third, 1)
    with pytest.raises(NotFoundError):
        store.query_upload(idle)


@pytest.mark.parametrize("upload_id", ["", "../x", "a" * 64, "0" * 64 + "-1", "0" * 64 + "-x", "0" * 64 + "-1/.."])
def test_an_unknown_or_hostile_upload_id_is_not_found(store: LocalBlobStore, upload_id: str) -> None:
    with pytest.raises(NotFoundError):
        store.write_upload(upload_id, 0, b"x")
    with pytest.raises(NotFoundError):
        store.query_upload(upload_id)
    with pytest.raises(NotFoundError):
        store.finish_upload(upload_id)


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:../../x", "sha256:" + "A" * 64, "md5:" + "0" * 64, "0" * 64])
def test_a_malformed_digest_reaches_no_path(store: LocalBlobStore, digest: str) -> None:
    for call in (
        store.size,
        store.verify,
        store.open,
        lambda d: store.missing([d]),
        lambda d: store.start_upload(d, 1),
    ):
        with pytest.raises(InvalidInputError):
            call(digest)


def test_what_is_not_held_is_not_found(store: LocalBlobStore) -> None:
    for call in (store.size, store.verify, store.open, lambda d: list(store.read(d))):
        with pytest.raises(NotFoundError, match=DIGEST):
            call(DIGEST)


FILL = """
import resource, signal, sys
from pathlib import Path
from weft_registry.errors import ExhaustedError
from weft_registry.blobs.local import LocalBlobStore

root, digest, source = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
store, data = LocalBlobStore(root), source.read_bytes()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))
upload = store.start_upload(digest, len(data)).upload_id
store.write_upload(upload, 0, data[:1_000_000])
for attempt in (
    lambda: store.write_upload(upload, 1_000_000, data[1_000_000:]),
    lambda: store.put_file(source, digest, len(data)),
):
    try:
        attempt()
    except ExhaustedError as error:
        print(error.reason)
print(store.query_upload(upload).committed_bytes)
"""


def test_no_room_is_told_as_such_and_the_upload_goes_on_later(home: Home, source: Path) -> None:
    root = home.root / "store"
    process = python(FILL, str(root), DIGEST, str(source), home=home)
    out, errors = process.communicate(timeout=60)
    assert errors == ""
    first, second, committed = out.split()
    assert (first, second) == ("DISK_FULL", "DISK_FULL")
    store = LocalBlobStore(root)
    upload = store.start_upload(DIGEST, len(DATA))
    assert upload.committed_bytes == int(committed) >= 1_000_000
    store.write_upload(upload.upload_id, upload.committed_bytes, DATA[upload.committed_bytes :])
    store.finish_upload(upload.upload_id)
    assert store.verify(DIGEST) == len(DATA)
    assert files_in(root) == [blob_path(root)]
