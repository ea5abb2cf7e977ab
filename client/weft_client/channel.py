"""What both inference clients need to know about channels: where the server is, its options, and how errors come back.

Knows no message.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypedDict

import grpc

from weft_registry.errors import DeadlineError, UnavailableError, UnsupportedError, WeftError
from weft_registry.wire.login import token_for
from weft_registry.wire.status import from_rpc_error

DEFAULT_SERVER = "127.0.0.1:50051"

OPTIONS: tuple[tuple[str, int], ...] = (
    # A peer that vanished without a FIN is found within half a minute, even while an answer is slow to start. Pings
    # go out only during calls: a server may close a connection that is pinged while idle.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # One answer with 20 log-probabilities at each of some thousand positions passes the default of 4 MiB.
    ("grpc.max_receive_message_length", 64 << 20),
    # Servers on this machine are reached directly, whatever proxy the environment names for the rest of the world.
    ("grpc.enable_http_proxy", 0),
)


class CallKeywords(TypedDict):
    """What every stub method takes besides its request."""

    timeout: float | None
    metadata: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class CallDefaults:
    """What a client says with every call that does not say otherwise."""

    timeout_s: float | None
    metadata: Mapping[str, str] | None

    def keywords(self, timeout_s: float | None, metadata: Mapping[str, str] | None = None) -> CallKeywords:
        """Deadline and metadata of one call; its own metadata replaces the client's, key by key."""
        merged: dict[str, str] = {}
        for part in (self.metadata, metadata):
            # gRPC wants the keys in lower case.
            merged.update({key.lower(): value for key, value in (part or {}).items()})
        return {"timeout": self.timeout_s if timeout_s is None else timeout_s, "metadata": tuple(merged.items())}


def server_address(target: str | None) -> str:
    """`target`, or WEFT_SERVER, or 127.0.0.1:50051."""
    return target or os.environ.get("WEFT_SERVER") or DEFAULT_SERVER


def with_token(target: str, metadata: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """`metadata`, and the token for `target` unless it says another. Raises as `token_for`."""
    if any(key.lower() == "authorization" for key in metadata or {}):
        return metadata
    token = token_for(target)
    return metadata if token is None else {**(metadata or {}), "authorization": f"Bearer {token}"}


@contextmanager
def errors_from(target: str) -> Generator[None]:
    """Raises an `RpcError` inside as the `WeftError` that the server answered."""
    try:
        yield
    except grpc.RpcError as error:
        raise _translated(error, target) from error


def _translated(error: grpc.RpcError, target: str) -> WeftError:
    known = from_rpc_error(error)
    if known.reason != known.default_reason:
        return known
    # Without a reason of the server's own, gRPC itself made the error up, and says little.
    if isinstance(known, DeadlineError):
        return DeadlineError(
            f"the server at {target} did not finish before the deadline; ask for less, or allow more time"
        )
    if isinstance(known, UnsupportedError):
        return UnsupportedError(f"the server at {target} does not have this service ({known.message})")
    if isinstance(known, UnavailableError):
        return UnavailableError(
            f"no answer from the server at {target} ({known.message}); start one with `weft serve --base NAME`, or "
            "name another with --server or WEFT_SERVER",
            reason="SERVER_UNREACHABLE",
            metadata={"target": target},
        )
    return known
