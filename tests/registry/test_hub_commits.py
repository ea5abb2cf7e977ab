"""The reader of commits by itself: however the bytes are cut, and whatever is wrong with them."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from weft_registry.errors import WeftError
from weft_registry.hub.commits import CommitLimits, CommitReader
from weft_registry.workspaces.commit import Commit, Delete, Put

HEADER: dict[str, Any] = {"key": "header", "value": {"summary": "s", "description": ""}}
OID = "ab" * 32


def line(document: Any) -> bytes:
    return json.dumps(document).encode() + b"\n"


def file(path: str, data: bytes, **more: Any) -> bytes:
    content = base64.b64encode(data).decode()
    return line({"key": "file", "value": {"content": content, "path": path, "encoding": "base64", **more}})


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "scratch"
    left = list((tmp_path / "scratch").glob("*"))
    assert left == [], "temporary files are removed, whatever happened"


def read(body: bytes, scratch: Path, cuts: int = 0, limits: CommitLimits | None = None) -> tuple[Commit, list[bytes]]:
    """The commit, and the bytes of its files; the body in pieces of `cuts` bytes, or in one."""
    reader = CommitReader(scratch, limits)
    try:
        step = cuts or len(body) or 1
        for start in range(0, len(body), step):
            reader.feed(body[start : start + step])
        commit = reader.finish()
        spooled = [put.spooled for put in commit.operations if isinstance(put, Put)]
        return commit, [path.read_bytes() for path in spooled if path is not None]
    finally:
        reader.close()


@pytest.mark.parametrize("cuts", [0, 1, 2, 3, 5, 7, 64, 65, 1000])
def test_however_it_is_cut_the_commit_is_the_same(scratch: Path, cuts: int) -> None:
    data = [b"", b"a", b'{"content": "x"}', bytes(range(256)), random.Random(0).randbytes(1501)]
    head = {"key": "header", "value": {"summary": 'say "content": "x"', "description": "", "parentCommit": "ab" * 20}}
    body = line(head) + b"".join(file(f"file{n}.txt", item) for n, item in enumerate(data))
    body += line({"key": "lfsFile", "value": {"path": "b.txt", "algo": "sha256", "oid": OID, "size": 5}})
    body += line({"key": "deletedFile", "value": {"path": "c.txt"}})
    body += line({"key": "deletedFolder", "value": {"path": "d/"}}).rstrip(b"\n")
    commit, found = read(body, scratch, cuts)
    assert found == data
    assert (commit.summary, commit.parent) == ('say "content": "x"', "ab" * 20)
    puts = [
        Put(f"file{n}.txt", "sha256:" + hashlib.sha256(item).hexdigest(), len(item), None)
        for n, item in enumerate(data)
    ]
    known = [Put(p.path, p.sha256, p.size_bytes, None) if isinstance(p, Put) else p for p in commit.operations]
    assert known == [
        *puts,
        Put("b.txt", f"sha256:{OID}", 5, None),
        Delete("c.txt", False),
        Delete("d/", True),
    ]


def test_keys_come_in_any_order_and_with_any_spaces(scratch: Path) -> None:
    content = base64.b64encode(b"data").decode()
    body = line(HEADER)
    body += f'  {{"value" : {{"path" :"a.txt","content" : "{content}" }} , "key":"file"}}\r\n\n'.encode()
    commit, found = read(body, scratch, 3)
    assert found == [b"data"]
    assert [operation.path for operation in commit.operations] == ["a.txt"]


def value(**fields: Any) -> bytes:
    return line(HEADER) + line({"key": "file", "value": fields})


BAD = {
    "nothing": b"",
    "no header": file("a.txt", b"a"),
    "two headers": line(HEADER) * 2,
    "no JSON": b"nonsense\n",
    "an array": line([1]),
    "no UTF-8": line(HEADER) + b'{"key": "file\xff", "value": {}}\n',
    "a key twice": line(HEADER) + b'{"key": "file", "key": "file", "value": {"path": "a.txt"}}\n',
    "another key": line(HEADER) + line({"key": "file", "value": {"path": "a.txt"}, "more": 1}),
    "an operation nobody knows": line(HEADER) + line({"key": "rename", "value": {"path": "a.txt"}}),
    "nested too deep": line(HEADER) + b'{"key": "file", "value": ' + b"[" * 20000 + b"\n",
    "a parent that is none": line({"key": "header", "value": {"summary": "s", "parentCommit": "main"}}),
    "a summary that is none": line({"key": "header", "value": {"summary": 1}}),
    "content in the header": line({"key": "header", "value": {"summary": "s", "content": "AAAA"}}),
    "content of nothing": line(HEADER) + line({"content": "AAAA", "key": "file", "value": {"path": "a.txt"}}),
    "content of a deletion": line(HEADER) + line({"key": "deletedFile", "value": {"path": "a", "content": "AAAA"}}),
    "two contents": line(HEADER)
    + b'{"key": "file", "value": {"content": "AAAA", "content": "AAAA", "path": "a.txt"}}\n',
    "no content": value(path="a.txt"),
    "content that is no string": value(path="a.txt", content=1),
    "no path": value(content="AAAA"),
    "an empty path": value(content="AAAA", path=""),
    "a path that is none": value(content="AAAA", path=3),
    "another encoding": value(content="AAAA", path="a.txt", encoding="utf-8"),
    "base64 without its end": value(content="AAA", path="a.txt"),
    "base64 after its end": value(content="AA==AAAA", path="a.txt"),
    "base64 with a line end": value(content="AAAA\nAAAA", path="a.txt"),
    "base64 with another letter": value(content="AA*A", path="a.txt"),
    "base64 of another alphabet": value(content="AA-_", path="a.txt"),
    "an end in a content": line(HEADER) + b'{"key": "file", "value": {"content": "AAAA',
    "an end in a line": line(HEADER) + b'{"key": "file", ',
    "a path that leads out": value(content="AAAA", path="../catalog.db"),
    "an absolute path": value(content="AAAA", path="/etc/passwd"),
    "a path with a back slash": value(content="AAAA", path="a\\b.txt"),
    "a path with a control character": value(content="AAAA", path="a\x00.txt"),
    "a folder": value(content="AAAA", path="sub/a.txt"),
    "a pickle": value(content="AAAA", path="adapter_model.bin"),
    "an oid that is none": line(HEADER) + line({"key": "lfsFile", "value": {"path": "a.txt", "oid": "x", "size": 1}}),
    "an oid of another kind": line(HEADER)
    + line({"key": "lfsFile", "value": {"path": "a.txt", "algo": "md5", "oid": OID, "size": 1}}),
    "a negative size": line(HEADER) + line({"key": "lfsFile", "value": {"path": "a.txt", "oid": OID, "size": -1}}),
    "a size that is none": line(HEADER) + line({"key": "lfsFile", "value": {"path": "a.txt", "oid": OID, "size": "1"}}),
}


@pytest.mark.parametrize("cuts", [0, 11])
@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_refused(scratch: Path, case: str, cuts: int) -> None:
    with pytest.raises(WeftError):
        read(BAD[case], scratch, cuts)


@pytest.mark.parametrize(
    ("limits", "body"),
    [
        (CommitLimits(max_line_bytes=1000), line(HEADER) + b'{"key": "' + b"a" * 5000),
        (CommitLimits(max_line_bytes=1000), line(HEADER) + b" " * 5000),
        (CommitLimits(max_line_bytes=1000), file("a" * 5000, b"a")),
        (CommitLimits(max_file_bytes=1000), line(HEADER) + file("a.txt", b"a" * 1001)),
        (CommitLimits(max_operations=3), line(HEADER) + file("a.txt", b"a") * 4),
        (CommitLimits(max_operations=3), line(HEADER) + file(".gitattributes", b"a") * 4),
        (CommitLimits(max_operations=3), line(HEADER) + line({"key": "deletedFile", "value": {"path": "a"}}) * 4),
        (CommitLimits(max_body_bytes=1000), line(HEADER) + file("a.txt", b"a") * 50),
    ],
)
@pytest.mark.parametrize("cuts", [0, 100])
def test_limits_hold(scratch: Path, limits: CommitLimits, body: bytes, cuts: int) -> None:
    with pytest.raises(WeftError, match="more than"):
        read(body, scratch, cuts, limits)


def test_a_long_content_takes_no_memory_for_itself(scratch: Path) -> None:
    """What the reader keeps between two pieces is a line without its content."""
    piece = base64.b64encode(b"\0" * 3 * (1 << 18))
    reader = CommitReader(scratch)
    reader.feed(line(HEADER) + b'{"key": "file", "value": {"content": "')
    for _ in range(20):
        reader.feed(piece)
        kept = len(reader._buffer) + len(reader._line)
        assert kept < 1000
    reader.feed(b'", "path": "a.txt"}}\n')
    (put,) = reader.finish().operations
    assert isinstance(put, Put)
    assert put.size_bytes == 20 * 3 * (1 << 18)
    reader.close()


def test_what_a_killed_process_left_behind_is_removed_after_a_day(scratch: Path) -> None:
    scratch.mkdir()
    old, young = scratch / "commit-old", scratch / "commit-young"
    for path, age_s in ((old, 25 * 3600), (young, 3600)):
        path.write_bytes(b"x")
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age_s))
    CommitReader(scratch).close()
    assert (old.exists(), young.exists()) == (False, True)
    young.unlink()
