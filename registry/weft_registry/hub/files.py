"""Sends the bytes of a version's files: whole or in part, from disk in chunks, and never bytes without their digest."""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass

from weft_registry import artifact
from weft_registry.api import Version
from weft_registry.digest import CHUNK_BYTES
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import CorruptionError, NotFoundError, OffsetError
from weft_registry.hub.answers import Answer, error_answer
from weft_registry.hub.documents import HubFile, commit_of, files_of
from weft_registry.hub.revisions import Found

MAX_VERIFIED = 4096
_RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{1,18})?|-([0-9]{1,18}))")


@dataclass(frozen=True)
class Span:
    """A part of a file."""

    first: int
    length: int


def find_file(version: Found, path: str) -> HubFile:
    """The file of a version or a workspace. Raises `NotFoundError` (`FILE_NOT_FOUND`) that says what there is."""
    files = files_of(version)
    for file in files:
        if file.path == path:
            return file
    raise NotFoundError(
        f"{version.adapter}, commit {commit_of(version)}, has no file {path[:150]!r}; it has "
        f"{', '.join(file.path for file in files) or 'none'}",
        reason="FILE_NOT_FOUND",
    )


def parse_range(header: str, size: int) -> Span | None:
    """The part that a Range header asks for.

    None, the whole, for what a server may ignore (RFC 9110, section 14.2): other units, several parts, nonsense. Raises
    `OffsetError` for a part past the end.
    """
    match = _RANGE.fullmatch(header.replace(" ", "").lower())
    if match is None:
        return None
    if match[3] is not None:
        first, last = max(0, size - int(match[3])), size - 1
        if int(match[3]) == 0:
            first = size
    else:
        first, last = int(match[1]), min(size - 1, int(match[2])) if match[2] else size - 1
        if match[2] and int(match[2]) < first:
            return None
    if first >= size:
        raise OffsetError(f"range {header[:80]!r}: the file has {size} bytes", metadata={"size_bytes": str(size)})
    return Span(first, last - first + 1)


class FileSender:
    """Answers requests for files. Lives in one event loop; owns what it remembers of blobs it has hashed."""

    def __init__(self) -> None:
        self._verified: OrderedDict[str, None] = OrderedDict()
        self._suspect: set[str] = set()
        self._hashing = asyncio.Lock()

    async def answer(
        self, registry: EmbeddedRegistry, version: Found, file: HubFile, request: Mapping[str, str], *, body: bool
    ) -> Answer:
        """The file, as the request's headers (lower-case names) ask for it; headers alone without `body`. `registry`:
        as the caller may use it.

        Raises `CorruptionError` or `NotFoundError` for a damaged blob where that shows before the first byte is sent.
        Where it shows later the body raises it before its last chunk: nobody gets a whole wrong file.
        """
        headers = {
            "Content-Type": "application/octet-stream",
            "X-Content-Type-Options": "nosniff",
            "Content-Disposition": f'attachment; filename="{file.path}"',
            "Accept-Ranges": "bytes",
            "ETag": f'"{file.sha256}"',
            "X-Linked-ETag": f'"{file.sha256}"',
            "X-Linked-Size": str(file.size),
            "X-Repo-Commit": commit_of(version),
        }
        if not body:
            return Answer(200, {**headers, "Content-Length": str(file.size)})
        wanted = request.get("range", "")
        if request.get("if-range", headers["ETag"]) != headers["ETag"]:
            wanted = ""
        try:
            span = parse_range(wanted, file.size) if wanted else None
        except OffsetError as error:
            return error_answer(error, {"Content-Range": f"bytes */{file.size}"})
        if isinstance(version, Version) and file.path == artifact.MANIFEST:
            part = span or Span(0, file.size)
            chunks = _once(version.manifest_bytes[part.first : part.first + part.length])
        elif span is None:
            chunks = await self._whole(registry, file)
        else:
            chunks = await self._part(registry, file, span)
        if span is None:
            return Answer(200, {**headers, "Content-Length": str(file.size)}, chunks)
        content_range = f"bytes {span.first}-{span.first + span.length - 1}/{file.size}"
        return Answer(206, {**headers, "Content-Range": content_range, "Content-Length": str(span.length)}, chunks)

    async def _whole(self, registry: EmbeddedRegistry, file: HubFile) -> AsyncGenerator[bytes, None]:
        if file.digest in self._suspect:
            # Whoever was cut off asks again, and is told why, instead of being cut off again.
            await asyncio.to_thread(registry.verify_blob, file.digest)
            self._suspect.discard(file.digest)
        chunks = await asyncio.to_thread(registry.read_blob, file.digest)
        # Damage of a small file shows here, while the answer can still say so.
        first = await asyncio.to_thread(next, chunks, b"")
        return self._rest(file, first, chunks)

    async def _rest(self, file: HubFile, first: bytes, chunks: Iterator[bytes]) -> AsyncGenerator[bytes, None]:
        yield first
        try:
            while chunk := await asyncio.to_thread(next, chunks, b""):
                yield chunk
        except CorruptionError:
            self._suspect.add(file.digest)
            raise
        self._remember(file.digest)

    async def _part(self, registry: EmbeddedRegistry, file: HubFile, span: Span) -> AsyncGenerator[bytes, None]:
        # A part cannot be checked alone. Whoever resumes sends many of them: the whole is hashed for the first one, and
        # one at a time, since hashing takes a core.
        if file.digest not in self._verified:
            async with self._hashing:
                if file.digest not in self._verified:
                    await asyncio.to_thread(registry.verify_blob, file.digest)
                    self._remember(file.digest)
        return self._read_part(registry, file, span)

    async def _read_part(self, registry: EmbeddedRegistry, file: HubFile, span: Span) -> AsyncGenerator[bytes, None]:
        with await asyncio.to_thread(registry.open_blob, file.digest) as source:
            source.seek(span.first)
            left = span.length
            while left and (chunk := await asyncio.to_thread(source.read, min(left, CHUNK_BYTES))):
                left -= len(chunk)
                yield chunk

    def _remember(self, digest: str) -> None:
        self._verified[digest] = None
        self._verified.move_to_end(digest)
        while len(self._verified) > MAX_VERIFIED:
            self._verified.popitem(last=False)


async def _once(data: bytes) -> AsyncGenerator[bytes, None]:
    yield data
