"""Reads a commit as Hub clients send it: one JSON object a line, the files' bytes in them as base64.

    {"key": "header", "value": {"summary": ..., "description": ..., "parentCommit": ...}}
    {"key": "file", "value": {"content": "<base64>", "path": ..., "encoding": "base64"}}
    {"key": "lfsFile", "value": {"path": ..., "algo": "sha256", "oid": ..., "size": ...}}
    {"key": "deletedFile" or "deletedFolder", "value": {"path": ...}}

A line can be gigabytes long, so contents are decoded, hashed and written to temporary files as they come; of all else a
line holds at most `max_line_bytes`. Nothing here is published or looked up: see `weft_registry.workspaces.workspaces`.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft_registry.errors import InvalidInputError, UnsupportedError
from weft_registry.hub.contents import Content
from weft_registry.workspaces.commit import Commit, Delete, Put
from weft_registry.workspaces.paths import check_path, is_dropped

_CONTENT = re.compile(rb'"content"\s{0,8}:\s{0,8}"')
_LOOK_BACK = 64
"""More than `_CONTENT` can be long: what may be the beginning of one at the end of what has arrived."""
_OID = re.compile(r"[0-9a-f]{64}")
_PARENT = re.compile(r"[0-9a-f]{7,40}")
_IDLE_S = 24 * 3600.0


@dataclass(frozen=True)
class CommitLimits:
    """What one commit may hold."""

    max_body_bytes: int = 8 << 30
    max_file_bytes: int = 4 << 30
    """Of one file's content. Larger ones go through LFS, or `weft push`."""
    max_operations: int = 1000
    max_line_bytes: int = 64 << 10
    """Of a line, its content left out."""


class CommitReader:
    """Fed with a body piece by piece. Owns the temporary files of one commit: `close` removes them."""

    def __init__(self, directory: Path, limits: CommitLimits | None = None) -> None:
        """`directory`: where contents are written to until the commit is done."""
        self._directory, self._limits = directory, limits or CommitLimits()
        directory.mkdir(parents=True, exist_ok=True)
        _remove_idle(directory)
        self._buffer = bytearray()
        self._line = bytearray()
        """Of the line so far, all but its content."""
        self._content: Content | None = None
        self._done: Content | None = None
        self._received = 0
        self._number = 1
        self._header: Mapping[str, Any] | None = None
        self._operations: list[Put | Delete] = []
        self._dropped: list[str] = []
        self._spooled: list[Path] = []

    def feed(self, data: bytes) -> None:
        """The next bytes. Raises `InvalidInputError` naming the line."""
        self._received += len(data)
        if self._received > self._limits.max_body_bytes:
            raise InvalidInputError(
                f"a commit of more than {self._limits.max_body_bytes} bytes: send less at once, or use `weft push`",
                reason="BODY_TOO_LARGE",
            )
        self._buffer += data
        while self._content is not None or self._advance():
            if self._content is not None and not self._decode():
                return

    def finish(self) -> Commit:
        """The commit, when the body has ended. Raises `InvalidInputError` for one that is not whole."""
        if self._content is not None:
            raise self._wrong("it ends in the middle of a file's content")
        if self._line or self._buffer.strip():
            self.feed(b"\n")
        if self._header is None:
            raise InvalidInputError("commit: no line with the key 'header': a commit begins with one")
        return Commit(
            summary=self._header.get("summary", ""),
            parent=self._header.get("parentCommit", ""),
            operations=tuple(self._operations),
            dropped=tuple(self._dropped),
        )

    def close(self) -> None:
        """Removes the temporary files."""
        for content in (self._content, self._done):
            if content is not None:
                content.close()
        for path in self._spooled:
            path.unlink(missing_ok=True)

    def _advance(self) -> bool:
        """Takes what lies before the next content or line end; false if neither has arrived."""
        end = self._buffer.find(b"\n")
        begin = _CONTENT.search(self._buffer, 0, len(self._buffer) if end < 0 else end)
        if begin is not None:
            if self._done is not None:
                raise self._wrong("two contents")
            self._take(begin.end())
            self._content = self._spool()
            return True
        if end >= 0:
            self._take(end)
            del self._buffer[:1]
            self._end_line()
            return True
        if len(self._buffer) > _LOOK_BACK:
            self._take(len(self._buffer) - _LOOK_BACK)
        return False

    def _take(self, length: int) -> None:
        self._line += self._buffer[:length]
        del self._buffer[:length]
        if len(self._line) > self._limits.max_line_bytes:
            raise self._wrong(f"more than {self._limits.max_line_bytes} bytes, its content left out")

    def _spool(self) -> Content:
        if len(self._operations) >= self._limits.max_operations:
            raise self._wrong(f"more than {self._limits.max_operations} operations: commit fewer at once")
        path = self._directory / f"commit-{uuid.uuid4().hex}"
        self._spooled.append(path)
        return Content(path, self._limits.max_file_bytes)

    def _decode(self) -> bool:
        """Takes content up to its end; false if that has not arrived."""
        assert self._content is not None
        end = self._buffer.find(b'"')
        piece = bytes(self._buffer if end < 0 else self._buffer[:end])
        del self._buffer[: len(piece)]
        try:
            self._content.add(piece)
            if end < 0:
                return False
            self._content.finish()
        except ValueError as error:
            raise self._wrong(f"content: {error}") from error
        self._done, self._content = self._content, None
        return True

    def _end_line(self) -> None:
        line, self._line = bytes(self._line), bytearray()
        if line.strip():
            if len(self._operations) + len(self._dropped) >= self._limits.max_operations:
                raise self._wrong(f"more than {self._limits.max_operations} operations: commit fewer at once")
            self._operation(self._parsed(line))
        elif self._done is not None:
            raise self._wrong("a content that belongs to nothing")
        self._done = None
        self._number += 1

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            document = json.loads(line.decode("utf-8"), object_pairs_hook=_no_duplicates)
        except (ValueError, RecursionError) as error:
            raise self._wrong("not a JSON object on a line of its own") from error
        if not isinstance(document, dict) or document.keys() != {"key", "value"}:
            raise self._wrong("expected an object with the keys 'key' and 'value'")
        if not isinstance(document["key"], str) or not isinstance(document["value"], dict):
            raise self._wrong("expected a string as 'key' and an object as 'value'")
        return document

    def _operation(self, document: dict[str, Any]) -> None:
        key, value = document["key"], document["value"]
        if self._done is not None and key != "file":
            raise self._wrong(f"a content in a line with the key {key[:40]!r}")
        if (key == "header") != (self._header is None):
            raise self._wrong("a commit begins with one line with the key 'header', and has no second one")
        if key == "header":
            self._header = self._checked_header(value)
        elif key == "file":
            self._put(value)
        elif key == "lfsFile":
            self._put_lfs(value)
        elif key in ("deletedFile", "deletedFolder"):
            self._operations.append(Delete(self._path(value), folder=key == "deletedFolder"))
        else:
            raise UnsupportedError(
                f"commit, line {self._number}: {key[:40]!r}: this registry takes file, lfsFile, deletedFile and "
                "deletedFolder",
                reason="UNKNOWN_OPERATION",
            )

    def _checked_header(self, value: Mapping[str, Any]) -> Mapping[str, Any]:
        for name in ("summary", "description", "parentCommit"):
            if not isinstance(value.get(name, ""), str):
                raise self._wrong(f"{name}: expected a string")
        if "parentCommit" in value and not _PARENT.fullmatch(value["parentCommit"]):
            raise self._wrong("parentCommit: expected a commit id, or 7 of its digits at least")
        return value

    def _put(self, value: Mapping[str, Any]) -> None:
        if value.get("encoding", "base64") != "base64":
            raise self._wrong("encoding: contents come as base64")
        if self._done is None:
            raise self._wrong("no content as a string")
        path = self._path(value)
        if is_dropped(path):
            self._dropped.append(path)
            return
        check_path(path)
        done = self._done
        self._operations.append(Put(path, done.sha256, done.size_bytes, done.path))

    def _put_lfs(self, value: Mapping[str, Any]) -> None:
        oid, size, path = value.get("oid"), value.get("size"), self._path(value)
        if value.get("algo", "sha256") != "sha256" or not isinstance(oid, str) or not _OID.fullmatch(oid):
            raise self._wrong("expected a sha256 of 64 digits as oid")
        if size is not None and (type(size) is not int or size < 0):
            raise self._wrong("size: expected a whole number")
        if is_dropped(path):
            self._dropped.append(path)
            return
        check_path(path)
        self._operations.append(Put(path, f"sha256:{oid}", size, None))

    def _path(self, value: Mapping[str, Any]) -> str:
        path = value.get("path")
        if not isinstance(path, str) or not path:
            raise self._wrong("path: expected a file's name")
        return path

    def _wrong(self, what: str) -> InvalidInputError:
        return InvalidInputError(f"commit, line {self._number}: {what}", reason="COMMIT_REFUSED")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result


def _remove_idle(directory: Path) -> None:
    """What a killed process left behind."""
    now = time.time()
    for path in directory.glob("commit-*"):
        try:
            if now - path.stat().st_mtime > _IDLE_S:
                path.unlink()
        except FileNotFoundError:
            continue  # Another process was faster.
