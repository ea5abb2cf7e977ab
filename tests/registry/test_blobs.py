"""What every blob store promises: whole and right, or not there; uploads go on where they broke."""

from __future__ import annotations

import fcntl
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.registry.blob_lab import DATA, DIGEST, BlobLab, BucketLab, DirectoryLab, is_recent
from weft_registry import digest as digests
from weft_registry.blobs.store import BlobLimits, BlobStore, StoredBlob
from weft_registry.errors import (
    CorruptionError,
    ExhaustedError,
    InvalidInputError,
    NotFoundError,
    OffsetError,
)


@pytest.fixture(params=["directory", "bucket", "server"])
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> BlobLab:
    if request.param == "directory":
        return DirectoryLab(tmp_path / "store")
    if request.param == "bucket":
        return BucketLab(tmp_path / "store")
    url = os.environ.get("WEFT_TEST_BLOBS")
    if url is None:
        pytest.skip("no S3 server here: `make test-backends` starts one")
    return BucketLab(tmp_path / "store", f"{url}/{tmp_path.name}-{os.urandom(8).hex()}")


@pytest.fixture
def store(lab: BlobLab) -> BlobStore:
    return lab.store


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(DATA)
    return path


def test_what_is_put_is_read_back(lab: BlobLab, store: BlobStore, source: Path) -> None:
    assert store.missing([DIGEST]) == [DIGEST]
    done: list[int] = []
    store.put_file(source, DIGEST, len(DATA), done.append)
    assert sum(done) == len(DATA)
    assert store.missing([DIGEST]) == []
    assert store.size(DIGEST) == store.verify(DIGEST) == len(DATA)
    chunks = list(store.read(DIGEST))
    assert b"".join(chunks) == DATA
    assert max(map(len, chunks)) <= 1 << 20
    assert (lab.held(), lab.staged()) == ({DIGEST: DATA}, [])


@pytest.mark.parametrize(
    ("offset", "limit"), [(0, 10), (5, 0), (1 << 20, 1 << 20), (len(DATA) - 3, 100), (len(DATA), 0)]
)
def test_a_part_is_that_part(store: BlobStore, source: Path, offset: int, limit: int) -> None:
    store.put_file(source, DIGEST, len(DATA))
    end = offset + limit if limit else None
    assert b"".join(store.read(DIGEST, offset, limit)) == DATA[offset:end]


@pytest.mark.parametrize(("offset", "limit"), [(len(DATA) + 1, 0), (-1, 0), (0, -1)])
def test_a_part_outside_is_out_of_range(store: BlobStore, source: Path, offset: int, limit: int) -> None:
    store.put_file(source, DIGEST, len(DATA))
    with pytest.raises(OffsetError, match=str(len(DATA))):
        list(store.read(DIGEST, offset, limit))


@pytest.mark.parametrize("damage", ["first byte", "last byte", "truncated", "longer"])
def test_a_damaged_blob_is_never_given_whole(lab: BlobLab, store: BlobStore, source: Path, damage: str) -> None:
    store.put_file(source, DIGEST, len(DATA))
    flipped = {"first byte": 0, "last byte": len(DATA) - 1}
    if damage in flipped:
        at = flipped[damage]
        lab.replace(DIGEST, DATA[:at] + bytes([DATA[at] ^ 1]) + DATA[at + 1 :])
    else:
        lab.replace(DIGEST, DATA[:-1] if damage == "truncated" else DATA + b"x")
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


def test_put_with_wrong_bytes_stores_nothing(lab: BlobLab, store: BlobStore, source: Path) -> None:
    with pytest.raises(CorruptionError):
        store.put_file(source, digests.of_bytes(b"other"), len(DATA))
    with pytest.raises(CorruptionError):
        store.put_file(source, DIGEST, len(DATA) - 1)
    with pytest.raises(CorruptionError):
        store.put_file(source, DIGEST, len(DATA) + 1)
    assert (lab.held(), lab.staged()) == ({}, [])


def test_sixteen_threads_putting_the_same_blob_leave_one(lab: BlobLab, store: BlobStore, source: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: store.put_file(source, DIGEST, len(DATA)), range(16)))
    assert (lab.held(), lab.staged()) == ({DIGEST: DATA}, [])


def test_an_upload_outlives_the_store_object_and_resumes(lab: BlobLab, store: BlobStore) -> None:
    start = store.start_upload(DIGEST, len(DATA))
    assert (start.committed_bytes, start.complete) == (0, False)
    store.write_upload(start.upload_id, 0, DATA[:1000])
    again = lab.open()
    resumed = again.start_upload(DIGEST, len(DATA))
    assert (resumed.upload_id, resumed.committed_bytes) == (start.upload_id, 1000)
    assert again.query_upload(start.upload_id).committed_bytes == 1000
    again.write_upload(start.upload_id, 1000, DATA[1000:])
    assert again.missing([DIGEST]) == [DIGEST]
    assert again.finish_upload(start.upload_id).complete
    assert b"".join(again.read(DIGEST)) == DATA
    assert again.start_upload(DIGEST, len(DATA)).complete
    assert again.query_upload(start.upload_id).complete


def test_a_gap_an_overlap_and_too_many_bytes_are_out_of_range(store: BlobStore) -> None:
    upload = store.start_upload(DIGEST, len(DATA)).upload_id
    store.write_upload(upload, 0, DATA[:1000])
    for offset, chunk in ((999, b"x"), (1001, b"x"), (0, DATA[:1000]), (1000, DATA)):
        with pytest.raises(OffsetError) as caught:
            store.write_upload(upload, offset, chunk)
        assert caught.value.metadata["committed_bytes"] == "1000"
    with pytest.raises(OffsetError, match="send the rest"):
        store.finish_upload(upload)
    assert store.query_upload(upload).committed_bytes == 1000


def test_an_upload_of_wrong_bytes_stores_nothing_and_can_start_again(lab: BlobLab, store: BlobStore) -> None:
    upload = store.start_upload(DIGEST, 4).upload_id
    store.write_upload(upload, 0, b"oops")
    with pytest.raises(CorruptionError):
        store.finish_upload(upload)
    assert (lab.held(), lab.staged()) == ({}, [])
    assert store.start_upload(DIGEST, 4).committed_bytes == 0


def test_an_empty_blob_can_be_uploaded(store: BlobStore) -> None:
    empty = digests.of_bytes(b"")
    store.finish_upload(store.start_upload(empty, 0).upload_id)
    assert list(store.read(empty)) == []
    assert store.size(empty) == 0


def test_limits_are_kept_and_idle_uploads_make_room(lab: BlobLab) -> None:
    store = lab.open(BlobLimits(max_blob_bytes=100, max_open_uploads=2, upload_idle_s=60.0))
    with pytest.raises(ExhaustedError, match="at most 100"):
        store.start_upload(DIGEST, 101)
    first, second, third = (digests.of_bytes(bytes([i])) for i in range(3))
    store.start_upload(first, 1)
    idle = store.start_upload(second, 1).upload_id
    with pytest.raises(ExhaustedError) as caught:
        store.start_upload(third, 1)
    assert caught.value.retry_after_s is not None
    store.start_upload(second, 1)  # An open one is found again, whatever the limit.
    os.utime(lab.root / "uploads" / idle, (0, 0))
    store.start_upload(third, 1)
    with pytest.raises(NotFoundError):
        store.query_upload(idle)


@pytest.mark.parametrize("upload_id", ["", "../x", "a" * 64, "0" * 64 + "-1", "0" * 64 + "-x", "0" * 64 + "-1/.."])
def test_an_unknown_or_hostile_upload_id_is_not_found(store: BlobStore, upload_id: str) -> None:
    with pytest.raises(NotFoundError):
        store.write_upload(upload_id, 0, b"x")
    with pytest.raises(NotFoundError):
        store.query_upload(upload_id)
    with pytest.raises(NotFoundError):
        store.finish_upload(upload_id)


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:../../x", "sha256:" + "A" * 64, "md5:" + "0" * 64, "0" * 64])
def test_a_malformed_digest_reaches_no_path(store: BlobStore, digest: str) -> None:
    for call in (
        store.size,
        store.verify,
        store.open,
        lambda d: store.missing([d]),
        lambda d: store.start_upload(d, 1),
    ):
        with pytest.raises(InvalidInputError):
            call(digest)


def test_what_is_not_held_is_not_found(store: BlobStore) -> None:
    for call in (store.size, store.verify, store.open, lambda d: list(store.read(d))):
        with pytest.raises(NotFoundError, match=DIGEST):
            call(DIGEST)


def test_an_open_blob_is_read_and_sought_as_a_file_is(store: BlobStore, source: Path) -> None:
    store.put_file(source, DIGEST, len(DATA))
    beside = io.BytesIO(DATA)
    with store.open(DIGEST) as file:
        for offset, whence, length in (
            (0, 0, 8),
            (1 << 20, 1, 100),
            (-5, 2, 100),
            (7, 0, (2 << 20) + 3),
            (-3, 1, 10),
            (0, 2, 10),
            (3, 0, 0),
            (2 << 20, 0, -1),
        ):
            assert file.seek(offset, whence) == beside.seek(offset, whence)
            assert file.read(length) == beside.read(length)
            assert file.tell() == beside.tell()


def test_every_blob_is_listed_with_size_and_time(lab: BlobLab, store: BlobStore, tmp_path: Path) -> None:
    assert list(store.list_blobs()) == []
    blobs = {digests.of_bytes(data): data for data in (os.urandom(size) for size in (0, 1, 10, 100))}
    for digest, data in blobs.items():
        path = tmp_path / digest[7:]
        path.write_bytes(data)
        os.utime(path, (0, 0))
        store.put_file(path, digest, len(data))
    upload = store.start_upload(DIGEST, len(DATA)).upload_id
    store.write_upload(upload, 0, DATA)
    os.utime(lab.root / "uploads" / upload, (0, 0))
    store.finish_upload(upload)
    listed = list(store.list_blobs())
    assert all(type(blob) is StoredBlob and is_recent(blob.stored_at) for blob in listed)
    found = {blob.digest: blob.size_bytes for blob in listed}
    assert found == {digest: len(data) for digest, data in {**blobs, DIGEST: DATA}.items()}
    assert len(listed) == len(found)


def test_what_is_no_blob_is_not_listed(lab: BlobLab, store: BlobStore, source: Path) -> None:
    store.put_file(source, DIGEST, len(DATA))
    for name in (f"00/{DIGEST[7:]}" if DIGEST[7:9] != "00" else f"11/{DIGEST[7:]}", "ab/notes.txt", "ab/" + "AB" * 32):
        lab.add_beside(name)
    assert [blob.digest for blob in store.list_blobs()] == [DIGEST]


def test_deleted_blobs_are_gone_and_may_be_deleted_again(store: BlobStore, source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"other")
    kept = digests.of_bytes(b"other")
    store.put_file(source, DIGEST, len(DATA))
    store.put_file(other, kept, 5)
    never = digests.of_bytes(b"never put")
    with pytest.raises(InvalidInputError):
        store.delete_blobs([DIGEST, "sha256:../../x"])
    assert store.missing([DIGEST]) == []
    store.delete_blobs([never, DIGEST, never])
    store.delete_blobs([DIGEST])
    store.delete_blobs([])
    assert store.missing([kept, DIGEST, never]) == [DIGEST, never]
    store.put_file(source, DIGEST, len(DATA))
    assert b"".join(store.read(DIGEST)) == DATA


def test_idle_uploads_are_dropped_and_those_being_written_stay(lab: BlobLab, store: BlobStore) -> None:
    idle, busy, fresh = (digests.of_bytes(bytes([i])) for i in range(3))
    ids = {digest: store.start_upload(digest, 1).upload_id for digest in (idle, busy, fresh)}
    (lab.root / "tmp" / "of-a-killed-process").write_bytes(b"x")
    for path in lab.staged():
        if path.name != ids[fresh]:
            os.utime(path, (0, 0))
    with (lab.root / "uploads" / ids[busy]).open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert store.drop_idle_uploads(3600.0) == 1
    assert {path.name for path in lab.staged()} == {ids[busy], ids[fresh]}
    assert store.drop_idle_uploads(0.0) == 2
    assert lab.staged() == []


def test_an_upload_that_is_started_again_is_not_idle(lab: BlobLab, store: BlobStore) -> None:
    upload = store.start_upload(DIGEST, len(DATA)).upload_id
    store.write_upload(upload, 0, DATA[:10])
    os.utime(lab.root / "uploads" / upload, (0, 0))
    assert store.start_upload(DIGEST, len(DATA)).committed_bytes == 10
    assert store.drop_idle_uploads(3600.0) == 0


def test_it_says_where_it_is_and_that_it_can_be_reached(lab: BlobLab, store: BlobStore) -> None:
    store.check_access()
    assert store.where
