"""A gRPC method's handler, taken apart and put together again: what interceptors that stand around calls share."""

from __future__ import annotations

from typing import Any

import grpc

_MAKERS: dict[tuple[bool, bool], Any] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def behavior_of(handler: Any) -> Any:
    """The function that answers: of whichever of the four kinds the method is."""
    return handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream


def answering_with(handler: Any, behavior: Any) -> Any:
    """The same method, with `behavior` to answer instead."""
    make = _MAKERS[handler.request_streaming, handler.response_streaming]
    return make(behavior, handler.request_deserializer, handler.response_serializer)
