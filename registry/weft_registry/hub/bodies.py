"""What a request brings with it: read piece by piece, at a least rate, up to a most.

A client that sends nothing, or too little for too long, is not waited for. What is refused before it has arrived is
still taken from the wire for a while: a client reads the answer only when it has sent everything.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from weft_registry.errors import InvalidInputError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
MAX_JSON_BYTES = 4 << 20
JSON = ("application/json", "application/vnd.git-lfs+json")
FORM = ("application/x-www-form-urlencoded",)
NDJSON = ("application/x-ndjson",)
_DRAIN_BYTES = 64 << 20


@dataclass(frozen=True)
class BodyLimits:
    """How long is waited for a body."""

    first_s: float = 20.0
    """Waited for its bytes in all, before its rate counts."""
    least_bytes_per_s: float = 8192.0
    """Further bytes buy time at this rate."""


class ClientGoneError(Exception):
    """Nobody is there to be answered."""


class Body:
    """The body of one request. Lives in one event loop."""

    def __init__(self, receive: Receive, headers: Mapping[str, str], limits: BodyLimits | None = None) -> None:
        """`headers`: of the request, names in lower case."""
        self._receive, self._headers, self._limits = receive, headers, limits or BodyLimits()
        self._waited_s = 0.0
        self._received = 0
        self._begun = False
        self.ended = not self.announced
        """Whether all of it was taken."""

    @property
    def announced(self) -> bool:
        """Whether the request says that it has one."""
        return self._headers.get("content-length", "0") != "0" or "transfer-encoding" in self._headers

    @property
    def length(self) -> int | None:
        """Its size in bytes, if the request says it."""
        said = self._headers.get("content-length", "")
        return int(said) if said.isascii() and said.isdigit() and len(said) <= 18 else None

    def check(self, types: tuple[str, ...]) -> None:
        """Raises `InvalidInputError` for a body of another type, or one that is packed."""
        encoding = self._headers.get("content-encoding", "identity").strip().lower()
        if encoding != "identity":
            raise InvalidInputError(
                f"content-encoding {encoding[:40]!r}: bodies come as they are, not packed", reason="MEDIA_TYPE"
            )
        found = self._headers.get("content-type", "").partition(";")[0].strip().lower()
        if types and found not in types:
            raise InvalidInputError(f"content-type {found[:60]!r}: expected {' or '.join(types)}", reason="MEDIA_TYPE")

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Its bytes as they come. Raises `InvalidInputError` when they come too slowly, `ClientGoneError`."""
        while not self.ended:
            self._begun = True
            allowed_s = self._limits.first_s + self._received / self._limits.least_bytes_per_s
            began_s = time.monotonic()
            try:
                async with asyncio.timeout(allowed_s - self._waited_s):
                    message = await self._receive()
            except TimeoutError:
                self.ended = True  # Of no use any more: the connection is closed.
                raise InvalidInputError(
                    f"the body comes too slowly: {self._received} bytes in {allowed_s:.0f} seconds",
                    reason="BODY_TOO_SLOW",
                ) from None
            self._waited_s += time.monotonic() - began_s
            if message["type"] == "http.disconnect":
                self.ended = True
                raise ClientGoneError
            self._received += len(message.get("body", b""))
            self.ended = not message.get("more_body", False)
            if message.get("body"):
                yield message["body"]

    async def read(self, max_bytes: int, types: tuple[str, ...]) -> bytes:
        """All of it. Raises `InvalidInputError` for more than `max_bytes`, or another type."""
        self.check(types)
        data = bytearray()
        if (self.length or 0) <= max_bytes:
            async for chunk in self.chunks():
                data += chunk
                if len(data) > max_bytes:
                    break
        if len(data) > max_bytes or (self.length or 0) > max_bytes:
            raise InvalidInputError(f"a body of more than {max_bytes} bytes", reason="BODY_TOO_LARGE")
        return bytes(data)

    async def json(self, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
        """The object in it; an empty body is an empty object. Raises `InvalidInputError`."""
        data = await self.read(max_bytes, JSON if self.announced else ())
        try:
            document = json.loads(data.decode("utf-8")) if data else {}
        except (ValueError, RecursionError):
            raise InvalidInputError("the body is not JSON") from None
        if not isinstance(document, dict):
            raise InvalidInputError("the body is not a JSON object")
        return document

    async def form(self, max_bytes: int = MAX_JSON_BYTES) -> dict[str, list[str]]:
        """The fields in it, of a form or of a JSON object. Raises `InvalidInputError`."""
        data = await self.read(max_bytes, (*FORM, *JSON))
        if self._headers.get("content-type", "").partition(";")[0].strip().lower() in FORM:
            try:
                return parse_qs(data.decode("ascii"), keep_blank_values=True, max_num_fields=1000)
            except ValueError:
                raise InvalidInputError("the body is no form of at most 1000 fields") from None
        try:
            document = json.loads(data.decode("utf-8"))
        except (ValueError, RecursionError):
            raise InvalidInputError("the body is not JSON") from None
        if not isinstance(document, dict):
            raise InvalidInputError("the body is not a JSON object")
        values = {key: value if isinstance(value, list) else [value] for key, value in document.items()}
        if not all(isinstance(item, str | bool | int) for value in values.values() for item in value):
            raise InvalidInputError("the body is no object of strings")
        return {key: [str(item) for item in value] for key, value in values.items()}

    async def drain(self) -> None:
        """Takes what is left of a body of bearable size, so that its sender comes to read the answer."""
        if not self._begun and self._headers.get("expect", "").lower() == "100-continue":
            return  # Its sender waits for the answer, and sends nothing.
        if (self.length or 0) > _DRAIN_BYTES:
            return
        left = _DRAIN_BYTES
        try:
            async for chunk in self.chunks():
                left -= len(chunk)
                if left < 0:
                    return
        except InvalidInputError:
            return
