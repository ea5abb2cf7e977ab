"""Receiving beside writing: the next message of a call arrives while the one before it is being used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar

T = TypeVar("T")


async def one_ahead(messages: AsyncIterator[T]) -> AsyncGenerator[T]:
    """The same messages in the same order, and the same end or error. At most one is held that nobody asked for."""

    async def following() -> list[T]:
        async for message in messages:
            return [message]
        return []

    coming = asyncio.create_task(following())
    try:
        while found := await coming:
            coming = asyncio.create_task(following())
            yield found[0]
    finally:
        coming.cancel()
