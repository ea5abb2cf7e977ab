"""Opens gRPC channels to Weft's servers: in the clear or over TLS, and with the caller's token on every call.

TLS trusts the system's authorities, or those of WEFT_TLS_CA alone; WEFT_TLS_CERT and WEFT_TLS_KEY are shown to servers
that ask for a client certificate.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

from weft_registry.errors import InvalidInputError
from weft_registry.wire.endpoint import Endpoint
from weft_registry.wire.tls import check_authority, client_files

Options = Sequence[tuple[str, Any]]
# A server that was away is found again within a second: by default gRPC waits up to two minutes between attempts, and
# answers every call meanwhile that nobody is there.
_RECONNECT: Options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000)]


def open_channel(target: str, options: Options, token: str | None = None) -> grpc.Channel:
    """A channel to `target` ("HOST:PORT" or "grpcs://HOST:PORT") that says `token` with every call.

    Raises `InvalidInputError` for an address or files of TLS that are none.
    """
    endpoint = Endpoint.parse(target)
    options = [*_RECONNECT, *options]
    if endpoint.tls:
        channel = grpc.secure_channel(endpoint.address, channel_credentials(), options=options)
    else:
        channel = grpc.insecure_channel(endpoint.address, options=options)
    return grpc.intercept_channel(channel, _Said(token)) if token else channel


def open_async_channel(target: str, options: Options) -> grpc.aio.Channel:
    """As `open_channel`, for asyncio; the token is each call's metadata there."""
    endpoint = Endpoint.parse(target)
    options = [*_RECONNECT, *options]
    if endpoint.tls:
        return grpc.aio.secure_channel(endpoint.address, channel_credentials(), options=options)
    return grpc.aio.insecure_channel(endpoint.address, options=options)


def authorization(token: str) -> tuple[str, str]:
    """The metadata that says a token."""
    return "authorization", f"Bearer {token}"


def channel_credentials() -> grpc.ChannelCredentials:
    """What WEFT_TLS_CA, WEFT_TLS_CERT and WEFT_TLS_KEY say. Raises `InvalidInputError` naming the file that is none."""
    authority, cert, key = (os.environ.get(f"WEFT_TLS_{name}") for name in ("CA", "CERT", "KEY"))
    roots = check_authority("WEFT_TLS_CA", Path(authority)) if authority else None
    if bool(cert) != bool(key):
        raise InvalidInputError("WEFT_TLS_CERT and WEFT_TLS_KEY: a client certificate needs both")
    if not cert or not key:
        return grpc.ssl_channel_credentials(roots)
    chain, private = client_files(Path(cert), Path(key))
    return grpc.ssl_channel_credentials(roots, private, chain)


class _Said(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[type-arg]
    grpc.UnaryStreamClientInterceptor,  # type: ignore[type-arg]
    grpc.StreamUnaryClientInterceptor,  # type: ignore[type-arg]
    grpc.StreamStreamClientInterceptor,  # type: ignore[type-arg]
):
    """Adds the token to every call of a channel."""

    def __init__(self, token: str) -> None:
        self._metadata = authorization(token)

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(self._with_token(client_call_details), request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(self._with_token(client_call_details), request)

    def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return continuation(self._with_token(client_call_details), request_iterator)

    def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return continuation(self._with_token(client_call_details), request_iterator)

    def _with_token(self, details: grpc.ClientCallDetails) -> grpc.ClientCallDetails:
        return _Details(details, (*(details.metadata or ()), self._metadata))


class _Details(grpc.ClientCallDetails):
    """The details of a call with other metadata."""

    def __init__(self, details: grpc.ClientCallDetails, metadata: tuple[tuple[str, str | bytes], ...]) -> None:
        self.method, self.timeout, self.metadata = details.method, details.timeout, metadata
        self.credentials = details.credentials
        self.wait_for_ready = getattr(details, "wait_for_ready", None)
        self.compression = getattr(details, "compression", None)
