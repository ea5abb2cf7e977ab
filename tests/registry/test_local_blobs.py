"""The blob store in a directory: what is true of files alone."""

from __future__ import annotations

import fcntl
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from tests.registry.blob_lab import DATA, DIGEST, blob_path
from tests.registry.lab import python
from weft_registry.blobs.local import LocalBlobStore
from weft_registry.errors import NotFoundError
from weft_registry.home import Home


@pytest.fixture
def store(tmp_path: Path) -> LocalBlobStore:
    return LocalBlobStore(tmp_path / "store")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(DATA)
    return path


def files_in(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_a_blob_is_one_read_only_file(store: LocalBlobStore, source: Path, tmp_path: Path) -> None:
    store.put_file(source, DIGEST, len(DATA))
    path = blob_path(tmp_path / "store")
    assert files_in(tmp_path / "store") == [path]
    assert path.stat().st_mode & 0o222 == 0


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
