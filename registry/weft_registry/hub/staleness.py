"""Puts the note that an answer may be out of date (`weft_registry.staleness`) where HTTP callers can read it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from weft_registry.staleness import HEADER, collecting

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


def marking_stale(application: Application) -> Application:
    """An ASGI application that says it in a header."""

    async def call(scope: Message, receive: Receive, send: Send) -> None:
        with collecting() as notes:

            async def marked(message: Message) -> None:
                if notes and message["type"] == "http.response.start":
                    message = {**message, "headers": [*message["headers"], (HEADER.encode(), notes[0].encode("ascii"))]}
                await send(message)

            await application(scope, receive, marked)

    return call
