"""Pages of answers: how long they are, and where the next one begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from google.protobuf.message import Message

from weft_registry.errors import InvalidInputError
from weft_registry.reference import AdapterName

MAX_PAGE = 1000
DEFAULT_PAGE = 100
PAGE_BYTES = 4 << 20
"""A page ends early when its manifests grow beyond this, so that no answer outgrows what a client receives."""

MessageT = TypeVar("MessageT", bound=Message)


def page_size(asked: int) -> int:
    """How many entries a page has. Raises `InvalidInputError` for a number that is out of bounds."""
    if asked < 0 or asked > MAX_PAGE:
        raise InvalidInputError(f"page_size: {asked}; from 0 (which means {DEFAULT_PAGE}) to {MAX_PAGE}")
    return asked or DEFAULT_PAGE


def adapter_token(token: str) -> str:
    """`token`, if it is the name of an adapter. Raises `InvalidInputError`."""
    if token:
        try:
            AdapterName.parse(token)
        except InvalidInputError as error:
            raise InvalidInputError(f"page_token: {token[:80]!r} is not one that this registry gave") from error
    return token


def row_token(token: str) -> int:
    """The row that `token` names; 0 for none. Raises `InvalidInputError`."""
    if token and not (token.isascii() and token.isdecimal() and len(token) < 19):
        raise InvalidInputError(f"page_token: {token[:80]!r} is not one that this registry gave")
    return int(token or 0)


def fitting(messages: Sequence[MessageT]) -> list[MessageT]:
    """The first messages that together stay below `PAGE_BYTES`; always at least one, if there is one."""
    page: list[MessageT] = []
    size = 0
    for message in messages:
        size += message.ByteSize()
        if page and size > PAGE_BYTES:
            break
        page.append(message)
    return page
