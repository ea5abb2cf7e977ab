"""Hears from a mirror that its answers may be out of date (`weft_registry.staleness`)."""

from __future__ import annotations

from typing import Any

import grpc

from weft_registry.staleness import HEADER


class HearsStaleness(grpc.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]
    """Owns the last note that came with an answer over one channel. Calls with streams of answers carry none."""

    def __init__(self) -> None:
        self.note: str | None = None

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """See `grpc.UnaryUnaryClientInterceptor`."""
        call = continuation(client_call_details, request)
        for key, value in call.trailing_metadata() or ():
            if key == HEADER:
                self.note = str(value)
        return call
