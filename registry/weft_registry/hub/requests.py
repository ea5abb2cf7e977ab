"""One request that writes, as whoever answers it needs it; its body in pieces, and what its answer warns of."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass

from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import UnsupportedError
from weft_registry.hub import revisions
from weft_registry.hub.bodies import Body
from weft_registry.hub.routes import Route
from weft_registry.principal import Principal
from weft_registry.reference import AdapterName

_AT_ONCE = 1 << 20
"""Bytes that are received before a thread is given them."""


@dataclass(frozen=True)
class Request:
    """One request, as whoever answers it needs it."""

    asked: Route
    registry: EmbeddedRegistry
    """As the caller may use it."""
    principal: Principal
    query: Mapping[str, Sequence[str]]
    origin: str
    """`http://HOST:PORT`, as the client sees this server."""
    body: Body
    open_to_all: bool
    """Whoever has no token may read everything."""

    @property
    def adapter(self) -> AdapterName:
        """Raises `NotFoundError` for a name that can be no adapter's."""
        return revisions.adapter_name(self.asked.repo)

    def only(self, *known: str) -> None:
        """Raises `UnsupportedError` for a parameter that nobody looks at."""
        for key in self.query:
            if key not in known:
                hint = ": there are no pull requests here; commit to a branch" if key == "create_pr" else ""
                raise UnsupportedError(f"{key[:60]}: not something this registry does{hint}")


async def pieces(body: Body) -> AsyncGenerator[bytes, None]:
    """The body in pieces that are worth a thread's while."""
    piece = bytearray()
    async for chunk in body.chunks():
        piece += chunk
        if len(piece) >= _AT_ONCE:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)


def warnings(*messages: str) -> dict[str, str]:
    """The header by which clients show people what they should know; none for empty messages."""
    said = "; ".join(message for message in messages if message)
    if not said:
        return {}
    text = " ".join(said.split()).encode("ascii", "replace").decode()
    # "topic; message": a client shows one message for a topic.
    return {"X-HF-Warning": f"weft-{uuid.uuid4().hex[:8]}; {text[:800]}"}
