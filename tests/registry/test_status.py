"""Errors over gRPC: every class arrives as itself, with its details, and fits a trailer."""

from __future__ import annotations

import asyncio
import logging
import urllib.parse
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from weft_registry import errors
from weft_registry.errors import Violation, WeftError
from weft_registry.wire import status

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, WeftError)]


def call(kind: Any, method: str) -> Any:
    """A method of the test service; bytes travel as they are."""
    return kind(f"/test.Service/{method}")


async def answer(raising: Callable[[], Exception], streaming: bool) -> grpc.aio.AioRpcError | bytes:
    """What a client sees of a handler that raises, over a real channel."""

    async def unary(request: bytes, context: Any) -> bytes:
        raise raising()

    async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"first"
        raise raising()

    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Stream": grpc.unary_stream_rpc_method_handler(stream),
    }
    server = grpc.aio.server(interceptors=[status.ErrorInterceptor()])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            try:
                if streaming:
                    return b"".join([chunk async for chunk in call(channel.unary_stream, "Stream")(b"")])
                return bytes(await call(channel.unary_unary, "Unary")(b""))
            except grpc.aio.AioRpcError as error:
                return error
    finally:
        await server.stop(0)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
async def test_every_error_arrives_as_itself(kind: type[WeftError], streaming: bool) -> None:
    sent = kind(
        "straße: something is wrong",
        reason="SOME_REASON",
        metadata={"nearest": "a,b", "digest": "x"},
        violations=[Violation("tensors[a]", "missing"), Violation("files", "too many")],
        retry_after_s=2.5,
    )
    seen = await answer(lambda: sent, streaming)
    assert isinstance(seen, grpc.aio.AioRpcError)
    assert seen.code() is status.code_of(sent)
    received = status.from_rpc_error(seen)
    assert type(received) is kind
    assert vars(received) == vars(sent)


def test_the_codes_are_all_different() -> None:
    assert len({status.code_of(kind("x")) for kind in KINDS}) == len(KINDS)


def test_a_subclass_has_its_parents_status() -> None:
    class SpecialError(errors.PreconditionError):
        default_reason = "SPECIAL"

    assert status.code_of(SpecialError("x")) is grpc.StatusCode.FAILED_PRECONDITION
    detail = status.to_rpc_status(SpecialError("x", metadata={"base": "b"})).details[1]
    failure = error_details_pb2.PreconditionFailure()
    assert detail.Unpack(failure)
    assert (failure.violations[0].type, failure.violations[0].subject) == ("SPECIAL", "b")


async def test_an_error_with_very_much_to_say_still_arrives() -> None:
    sent = errors.InvalidInputError(
        "é" * 5000,
        metadata={"missing": "x" * 5000},
        violations=[Violation(f"tensors[{i}]", "y" * 500) for i in range(100)],
    )
    seen = await answer(lambda: sent, False)
    assert isinstance(seen, grpc.aio.AioRpcError)
    received = status.from_rpc_error(seen)
    assert type(received) is errors.InvalidInputError
    assert received.message.startswith("ééé")
    assert received.violations[0].field == "tensors[0]"
    assert received.violations[-1].description == f"and {100 - len(received.violations) + 1} more"


@given(
    st.text(max_size=3000),
    st.dictionaries(st.text(max_size=12), st.text(max_size=2000), max_size=6),
    st.lists(st.tuples(st.text(max_size=300), st.text(max_size=300)), max_size=40),
    st.sampled_from([errors.InvalidInputError, errors.PreconditionError]),
)
def test_no_error_outgrows_a_trailer(
    message: str, metadata: dict[str, str], violations: list[tuple[str, str]], kind: type[WeftError]
) -> None:
    said = status.to_rpc_status(
        kind(message, metadata=metadata, violations=[Violation(*pair) for pair in violations], retry_after_s=1.0)
    )
    encoded = len(urllib.parse.quote(said.message, safe=" "))
    assert encoded + said.ByteSize() < 7500


@pytest.mark.parametrize("streaming", [False, True])
async def test_the_unexpected_is_internal_and_leaves_its_traceback(
    streaming: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        seen = await answer(lambda: KeyError("secret path"), streaming)
    assert isinstance(seen, grpc.aio.AioRpcError)
    assert seen.code() is grpc.StatusCode.INTERNAL
    assert "secret path" not in (seen.details() or "")
    assert "secret path" in caplog.text
    assert "Traceback" in caplog.text


async def test_an_abort_inside_a_handler_stays_what_it_is() -> None:
    async def handler(request: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "no")
        return b""

    server = grpc.aio.server(interceptors=[status.ErrorInterceptor()])
    handlers = {"Unary": grpc.unary_unary_rpc_method_handler(handler)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel.unary_unary, "Unary")(b"")
        assert status.from_rpc_error(caught.value).reason == "PERMISSION_DENIED"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel.unary_unary, "Nothing")(b"")
        assert isinstance(status.from_rpc_error(caught.value), errors.UnsupportedError)
    await server.stop(0)


async def test_a_deadline_is_a_deadline_error() -> None:
    async def handler(request: bytes, context: Any) -> bytes:
        await asyncio.sleep(30)
        return b""

    server = grpc.aio.server(interceptors=[status.ErrorInterceptor()])
    handlers = {"Unary": grpc.unary_unary_rpc_method_handler(handler)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel.unary_unary, "Unary")(b"", timeout=0.05)
    assert isinstance(status.from_rpc_error(caught.value), errors.DeadlineError)
    await server.stop(0)
