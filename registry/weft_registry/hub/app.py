"""The ASGI application: a request in, the registry's answer out. SQL and files happen in threads.

It answers GET and HEAD, and writes nothing. A file asked for by tag or alias is answered with a redirect to the same
file by commit id: clients take the rest from there, so the file they were told about is the file they get.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import aclosing
from typing import Any
from urllib.parse import parse_qs, quote

from weft_registry import artifact
from weft_registry.api import Version
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import InvalidInputError, WeftError
from weft_registry.hub import documents, listing, revisions
from weft_registry.hub.answers import Answer, error_answer, json_answer, refusal
from weft_registry.hub.files import FileSender, find_file
from weft_registry.hub.pins import PinKey, Pins, session_of
from weft_registry.hub.routes import Route, route

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
MAX_QUERY_BYTES = 4096
_METHODS = ("GET", "HEAD")
_HOST = re.compile(r"[A-Za-z0-9._-]+(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](?::[0-9]{1,5})?")
_log = logging.getLogger(__name__)


class HubApp:
    """Owns nothing of the registry: whoever opened it closes it. Lives in one event loop."""

    def __init__(self, registry: EmbeddedRegistry, address: str) -> None:
        """`address`: HOST:PORT, for links to next pages where a request does not say how it came here."""
        self._registry = registry
        self._address = address
        self._files = FileSender(registry.blobs)
        self._pins = Pins()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """See the ASGI specification; only scopes of the type "http" come here."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        method = scope["method"]
        try:
            answer = await self._answer(method, scope, headers)
        except WeftError as error:
            answer = error_answer(error)
        except Exception:  # noqa: BLE001
            # The one place where any exception may end: a server must outlive a bug in one request.
            _log.exception("%s %r failed unexpectedly", method, scope["raw_path"][:200])
            answer = refusal(500, "this request failed unexpectedly: the server's log says why")
        await _deliver(answer, method, scope, receive, send)

    async def _answer(self, method: str, scope: Message, headers: Mapping[str, str]) -> Answer:
        if method not in _METHODS:
            message = f"{method[:20]}: this registry is read over HTTP, and written to over gRPC (`weft push`)"
            return refusal(405, message, {"Allow": ", ".join(_METHODS), "Connection": "close"})
        if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
            return refusal(413, f"{method} with a body: send none", {"Connection": "close"})
        asked = route(scope["raw_path"])
        if asked.page == "file":
            return await self._file(asked, method, headers)
        if len(scope["query_string"]) > MAX_QUERY_BYTES:
            raise InvalidInputError(f"query: {len(scope['query_string'])} bytes; at most {MAX_QUERY_BYTES}")
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=64)
        entries, following = await asyncio.to_thread(self._document, asked, query)
        if not following:
            return json_answer(entries)
        host = headers.get("host", "")
        host = host if _HOST.fullmatch(host) else self._address
        path = scope["raw_path"].decode("latin-1")
        return json_answer(entries, {"Link": f'<http://{host}{path}?{following}>; rel="next"'})

    def _document(self, asked: Route, query: Mapping[str, list[str]]) -> tuple[Any, str]:
        """A page of JSON, and the query of the page after it, if there is one."""
        if asked.page == "models":
            return listing.models(self._registry, query)
        adapter = revisions.adapter_name(asked.repo)
        if asked.page == "refs":
            return listing.refs(self._registry, adapter), ""
        version = revisions.resolve(self._registry, adapter, asked.revision)
        if asked.page == "commits":
            return listing.commits(self._registry, version, query)
        if asked.page == "tree":
            return listing.tree(version, asked.path), ""
        blobs = query.get("blobs", ["false"])[-1].lower() in ("", "true", "1")
        return documents.model_info(version, blobs=blobs), ""

    async def _file(self, asked: Route, method: str, headers: Mapping[str, str]) -> Answer:
        version = await self._version(asked, headers)
        file = find_file(version, asked.path)
        commit = revisions.commit_id(version.digest)
        if asked.revision != commit:
            place = f"/{version.adapter}/resolve/{commit}/{quote(file.path)}"
            return Answer(307, {"Location": place, "X-Repo-Commit": commit})
        return await self._files.answer(version, file, headers, body=method == "GET")

    async def _version(self, asked: Route, headers: Mapping[str, str]) -> Version:
        adapter = revisions.adapter_name(asked.repo)
        session = session_of(headers.get("user-agent", ""))
        revision = asked.revision
        key = PinKey(session, adapter, revision) if session else None
        if key and asked.path != artifact.CONFIG:
            revision = self._pins.get(key) or revision
        version = await asyncio.to_thread(revisions.resolve, self._registry, adapter, revision)
        if key and asked.path == artifact.CONFIG and asked.revision != revisions.commit_id(version.digest):
            self._pins.pin(key, version.digest)
        return version


async def _deliver(answer: Answer, method: str, scope: Message, receive: Receive, send: Send) -> None:
    headers = dict(answer.headers)
    if isinstance(answer.body, bytes):
        # An answer to HEAD says the length of what it leaves out.
        headers.setdefault("Content-Length", str(len(answer.body)))
    start = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": start})
    if isinstance(answer.body, bytes):
        await send({"type": "http.response.body", "body": b"" if method == "HEAD" else answer.body})
        return
    await _stream(answer.body, scope, receive, send)


async def _stream(body: AsyncGenerator[bytes, None], scope: Message, receive: Receive, send: Send) -> None:
    """Sends chunk by chunk, and stops reading when the client is gone, which `send` does not say."""
    gone = asyncio.create_task(_gone(receive))
    try:
        async with aclosing(body):
            async for chunk in body:
                if gone.done():
                    return
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    except WeftError as error:
        # What was sent is short of its promised length, and the server cuts the connection: a client sees that.
        _log.error("%r was cut off: %s", scope["raw_path"][:200], error.message)
    finally:
        gone.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
