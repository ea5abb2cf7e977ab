"""What is received ahead is neither lost nor put in another order, and ends as the call ends."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from weft_registry.serve.ahead import one_ahead


async def _numbers(count: int, taken: list[int], error: Exception | None = None) -> AsyncIterator[int]:
    for number in range(count):
        taken.append(number)
        yield number
    if error is not None:
        raise error


async def _settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_messages_are_the_same(count: int) -> None:
    async def received() -> list[int]:
        return [number async for number in one_ahead(_numbers(count, []))]

    assert asyncio.run(received()) == list(range(count))


def test_one_message_is_received_while_another_is_used_and_no_more() -> None:
    async def call() -> None:
        taken: list[int] = []
        async with aclosing(one_ahead(_numbers(9, taken))) as messages:
            async for number in messages:
                await _settle()
                assert taken == list(range(min(number + 2, 9)))

    asyncio.run(call())


def test_an_error_comes_after_what_came_before_it() -> None:
    received: list[int] = []

    async def call() -> None:
        async for number in one_ahead(_numbers(2, [], ConnectionError())):
            received.append(number)  # noqa: PERF401 - what came before the error is looked at

    with pytest.raises(ConnectionError):
        asyncio.run(call())
    assert received == [0, 1]


def test_who_leaves_early_leaves_nothing_running() -> None:
    async def call() -> set[asyncio.Task[None]]:
        async with aclosing(one_ahead(_numbers(9, []))) as messages:
            async for _ in messages:
                break
        await _settle()
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(call()) == set()


def test_an_error_that_nobody_waits_for_is_not_printed(caplog: pytest.LogCaptureFixture) -> None:
    async def call() -> None:
        async with aclosing(one_ahead(_numbers(1, [], ConnectionError()))) as messages:
            async for _ in messages:
                await _settle()
                break
        await _settle()

    asyncio.run(call())
    gc.collect()
    assert caplog.records == []
