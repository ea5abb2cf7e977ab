"""A large blob passes through a bucket's store without ever being in memory as a whole."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from tests.registry.lab import python
from weft_registry.home import Home

MIB = 1 << 20
SIZE = 512 * MIB
SCRIPT = """
import resource, sys
from pathlib import Path
from weft_registry.storage import Storage

place, path, digest, staging = sys.argv[1:]
size = Path(path).stat().st_size
store = Storage(None, place).open_blobs(Path(staging), None)
store.check_access()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
done = []
store.put_file(Path(path), digest, size, done.append)
assert sum(done) == size
assert store.verify(digest) == size
assert sum(map(len, store.read(digest))) == size
assert sum(map(len, store.read(digest, 5, size - 10))) == size - 10
store.delete_blobs([digest])
upload = store.start_upload(digest, size).upload_id
with open(path, "rb") as source:
    while chunk := source.read(1 << 20):
        store.write_upload(upload, source.tell() - len(chunk), chunk)
assert store.finish_upload(upload).complete
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_blob(place: str, tmp_path: Path) -> None:
    path, sha256 = tmp_path / "large", hashlib.sha256()
    block = bytes(range(256)) * 4096
    with path.open("wb") as sink:
        for index in range(SIZE // MIB):
            piece = index.to_bytes(8, "little") + block[8:]
            sink.write(piece)
            sha256.update(piece)
    arguments = [place, str(path), "sha256:" + sha256.hexdigest(), str(tmp_path / "staging")]
    out, errors = python(SCRIPT, *arguments, home=Home(tmp_path / "home")).communicate(timeout=240)
    assert errors == ""
    unit = 1 if sys.platform == "darwin" else 1024
    # Parts of 8 MiB, a few at a time, and what the allocator keeps.
    assert int(out) * unit < 160 * MIB
