"""Puts the note that an answer may be out of date (`weft_registry.staleness`) where gRPC callers can read it."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from weft_registry.staleness import HEADER, collecting
from weft_registry.wire.handlers import answering_with


class StalenessInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Adds the note to the trailing metadata of calls with one answer; files, which are read by digest, have none."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """See `grpc.aio.ServerInterceptor`."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or not inspect.iscoroutinefunction(handler.unary_unary):
            return handler
        inner = handler.unary_unary

        async def handle(request: Any, context: Any) -> Any:
            with collecting() as notes:
                answer = await inner(request, context)
            if notes:
                context.set_trailing_metadata(((HEADER, notes[0]),))
            return answer

        return answering_with(handler, handle)
