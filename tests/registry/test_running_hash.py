"""What hashing beside other work must not change: the digest of every byte, whoever wrote it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft_registry import digest
from weft_registry.beside import HashBeside
from weft_registry.blobs.local import LocalBlobStore
from weft_registry.errors import CorruptionError

DATA = b"0123456789" * 30_000
DIGEST = digest.of_bytes(DATA)


@given(st.lists(st.sampled_from([b"", b"a", b"b" * 100, b"c" * (1 << 16), b"d" * (1 << 17)]), max_size=8))
def test_hashing_beside_is_hashing(chunks: list[bytes]) -> None:
    with HashBeside() as hashing:
        for chunk in chunks:
            hashing.update(chunk)
        assert hashing.digest() == digest.of_bytes(b"".join(chunks))


def test_a_hash_that_starts_over_forgets_what_was_before() -> None:
    with HashBeside() as hashing:
        for data in (b"a" * (1 << 17), b"b", b""):
            hashing.update(data)
            assert hashing.digest() == digest.of_bytes(data)
            hashing.start_over()


@pytest.fixture
def store(tmp_path: Path) -> LocalBlobStore:
    return LocalBlobStore(tmp_path)


def test_an_upload_in_chunks_is_not_read_again(store: LocalBlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the file was read again")

    upload = store.start_upload(DIGEST, len(DATA)).upload_id
    for at in range(0, len(DATA), 70_000):
        store.write_upload(upload, at, DATA[at : at + 70_000])
    monkeypatch.setattr(hashlib, "file_digest", never)
    assert store.finish_upload(upload).complete


@pytest.mark.parametrize("when", ["between two chunks", "before the end"])
def test_bytes_that_another_process_wrote_are_hashed(store: LocalBlobStore, tmp_path: Path, when: str) -> None:
    """Another process is another store on the same directory."""
    other, half = LocalBlobStore(tmp_path), len(DATA) // 2
    upload = store.start_upload(DIGEST, len(DATA)).upload_id
    store.write_upload(upload, 0, DATA[:half])
    writer, at = (other, half) if when == "between two chunks" else (store, half)
    writer.write_upload(upload, at, DATA[half:-10])
    other.write_upload(upload, len(DATA) - 10, b"x" * 10)
    with pytest.raises(CorruptionError):
        store.finish_upload(upload)
    assert store.missing([DIGEST]) == [DIGEST]


def test_an_upload_that_was_begun_again_elsewhere_is_hashed_from_its_beginning(
    store: LocalBlobStore, tmp_path: Path
) -> None:
    half = len(DATA) // 2
    upload = store.start_upload(DIGEST, len(DATA)).upload_id
    store.write_upload(upload, 0, DATA[:half])
    (tmp_path / "uploads" / upload).unlink()
    other = LocalBlobStore(tmp_path)
    other.start_upload(DIGEST, len(DATA))
    other.write_upload(upload, 0, b"x" * half)
    store.write_upload(upload, half, DATA[half:])
    with pytest.raises(CorruptionError):
        store.finish_upload(upload)
