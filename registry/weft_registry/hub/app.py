"""The ASGI application: a request in, the registry's answer out. SQL and files happen in threads.

Who asks is settled first; everything then happens as that identity. A file asked for by tag, alias or branch is
answered with a redirect to the same file by commit id: clients take the rest from there, so the file they were told
about is the file they get. Requests that write are `weft_registry.hub.writing`'s.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, quote

from weft_registry import artifact
from weft_registry.access.authenticator import Authenticator
from weft_registry.api import Version
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import InvalidInputError, UnauthenticatedError, WeftError
from weft_registry.hub import documents, listing, repos, revisions
from weft_registry.hub.answers import Answer, error_answer, json_answer, refusal
from weft_registry.hub.bodies import Body, BodyLimits, ClientGoneError, Message, Receive
from weft_registry.hub.commits import CommitLimits
from weft_registry.hub.files import FileSender, find_file
from weft_registry.hub.pins import PinKey, Pins, session_of
from weft_registry.hub.requests import Request
from weft_registry.hub.revisions import Found
from weft_registry.hub.routes import Route, route
from weft_registry.hub.writing import Writer
from weft_registry.principal import EVERY, LOCAL, NOBODY, Principal, Scope

Send = Callable[[Message], Awaitable[None]]
MAX_QUERY_BYTES = 4096
_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")
_HOST = re.compile(r"[A-Za-z0-9._-]+(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](?::[0-9]{1,5})?")
_log = logging.getLogger(__name__)


class HubApp:
    """Owns nothing of the registry: whoever opened it closes it. Lives in one event loop."""

    def __init__(
        self,
        registry: EmbeddedRegistry,
        address: str,
        authenticator: Authenticator | None = None,
        body_limits: BodyLimits | None = None,
        commit_limits: CommitLimits | None = None,
    ) -> None:
        """`address`: HOST:PORT, for links where a request does not say how it came here. `authenticator`: without one
        nobody is asked who they are, and everybody may do what this process may."""
        self._registry = registry
        self._address = address
        self._authenticator = authenticator
        self._body_limits = body_limits
        self._files = FileSender()
        self._pins = Pins()
        self._writer = Writer(commit_limits)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """See the ASGI specification; only scopes of the type "http" come here."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        method = scope["method"]
        body = Body(receive, headers, self._body_limits)
        try:
            answer = await self._answer(method, scope, headers, body)
        except ClientGoneError:
            return
        except WeftError as error:
            answer = error_answer(error)
        except Exception:  # noqa: BLE001
            # The one place where any exception may end: a server must outlive a bug in one request.
            _log.exception("%s %r failed unexpectedly", method, scope["raw_path"][:200])
            answer = refusal(500, "this request failed unexpectedly: the server's log says why")
        if not body.ended and answer.status != 401 and "Connection" not in answer.headers:
            try:
                await body.drain()
            except ClientGoneError:
                return
        if not body.ended or answer.status == 408:
            answer = Answer(answer.status, {**answer.headers, "Connection": "close"}, answer.body)
        await _deliver(answer, method, scope, receive, send)

    async def _answer(self, method: str, scope: Message, headers: Mapping[str, str], body: Body) -> Answer:
        if method not in _METHODS:
            return _wrong_method(method, _METHODS)
        if method in ("GET", "HEAD") and body.announced:
            return refusal(413, f"{method} with a body: send none", {"Connection": "close"})
        asked = route(scope["raw_path"], method)
        if method not in asked.methods:
            return _wrong_method(method, asked.methods)
        if len(scope["query_string"]) > MAX_QUERY_BYTES:
            raise InvalidInputError(f"query: {len(scope['query_string'])} bytes; at most {MAX_QUERY_BYTES}")
        try:
            query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=64)
        except ValueError:
            raise InvalidInputError("query: more than 64 fields") from None
        if asked.page == "lfs-object":
            principal = self._writer.permitted(asked, query)
        else:
            principal = await self._principal(headers, str((scope.get("client") or ("",))[0]))
        registry = self._registry if principal is LOCAL else self._registry.acting_as(principal)
        if asked.writes:
            origin = f"{scope.get('scheme', 'http')}://{self._host(headers)}"
            return await self._writer.answer(
                Request(asked, registry, principal, query, origin, body, self._open_to_all)
            )
        if asked.page == "file":
            return await self._file(registry, asked, method, headers)
        if asked.page == "whoami":
            return json_answer(repos.whoami(principal))
        if asked.page == "paths-info":
            form = await body.form()
            return json_answer(await asyncio.to_thread(self._paths_info, registry, asked, form))
        entries, following = await asyncio.to_thread(self._document, registry, principal, asked, query)
        if not following:
            return json_answer(entries)
        path = scope["raw_path"].decode("latin-1")
        place = f"{scope.get('scheme', 'http')}://{self._host(headers)}{path}?{following}"
        return json_answer(entries, {"Link": f'<{place}>; rel="next"'})

    async def _principal(self, headers: Mapping[str, str], peer: str) -> Principal:
        if self._authenticator is None:
            return LOCAL
        try:
            principal = await asyncio.to_thread(self._authenticator.principal, headers.get("authorization"))
            if principal == NOBODY:
                raise UnauthenticatedError(
                    "this registry asks everybody who they are: `hf auth login`, or HF_TOKEN, with a token that "
                    "`weft token create` made"
                )
        except UnauthenticatedError:
            self._registry.acting_as(replace(NOBODY, peer=peer)).note_denied("token", "http")
            raise
        return principal if principal is LOCAL else replace(principal, peer=peer)

    @property
    def _open_to_all(self) -> bool:
        return self._authenticator is None or self._authenticator.anonymous.may(Scope.READ, EVERY)

    def _host(self, headers: Mapping[str, str]) -> str:
        host = headers.get("host", "")
        return host if _HOST.fullmatch(host) else self._address

    def _document(
        self, registry: EmbeddedRegistry, principal: Principal, asked: Route, query: Mapping[str, list[str]]
    ) -> tuple[Any, str]:
        """A page of JSON, and the query of the page after it, if there is one."""
        if asked.page == "models":
            models, following = listing.models(registry, query)
            return [self._marked(model) for model in models], following
        adapter = revisions.adapter_name(asked.repo)
        if asked.page == "refs":
            return listing.refs(registry, adapter), ""
        if asked.page == "auth-check":
            registry.workspaces.heads(adapter)
            if asked.path == "write":
                principal.check(Scope.PUBLISH, adapter.namespace)
            return {}, ""
        found = revisions.resolve(registry, adapter, asked.revision)
        if asked.page == "commits":
            return listing.commits(registry, found, query)
        if asked.page == "tree":
            return listing.tree(found, asked.path), ""
        blobs = query.get("blobs", ["false"])[-1].lower() in ("", "true", "1")
        return self._marked(documents.model_info(found, blobs=blobs)), ""

    def _marked(self, model: dict[str, Any]) -> dict[str, Any]:
        """Where nobody reads without a token, every repository is a private one."""
        return {**model, "private": not self._open_to_all}

    def _paths_info(self, registry: EmbeddedRegistry, asked: Route, form: Mapping[str, list[str]]) -> Any:
        found = revisions.resolve(registry, revisions.adapter_name(asked.repo), asked.revision)
        wanted = set(form.get("paths", ()))
        return [entry for entry in documents.tree(found) if entry["path"] in wanted]

    async def _file(self, registry: EmbeddedRegistry, asked: Route, method: str, headers: Mapping[str, str]) -> Answer:
        found = await self._found(registry, asked, headers)
        file = find_file(found, asked.path)
        commit = documents.commit_of(found)
        if asked.revision != commit:
            place = f"/{found.adapter}/resolve/{commit}/{quote(file.path)}"
            return Answer(307, {"Location": place, "X-Repo-Commit": commit})
        return await self._files.answer(registry, found, file, headers, body=method == "GET")

    async def _found(self, registry: EmbeddedRegistry, asked: Route, headers: Mapping[str, str]) -> Found:
        adapter = revisions.adapter_name(asked.repo)
        session = session_of(headers.get("user-agent", ""))
        revision = asked.revision
        key = PinKey(session, adapter, revision) if session else None
        if key and asked.path != artifact.CONFIG:
            revision = self._pins.get(key) or revision
        found = await asyncio.to_thread(revisions.resolve, registry, adapter, revision)
        if key and asked.path == artifact.CONFIG and asked.revision != documents.commit_of(found):
            self._pins.pin(key, found.digest if isinstance(found, Version) else found.head)
        return found


def _wrong_method(method: str, known: tuple[str, ...]) -> Answer:
    message = f"{method[:20]}: here only {', '.join(known)}"
    return refusal(405, message, {"Allow": ", ".join(known), "Connection": "close"})


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
