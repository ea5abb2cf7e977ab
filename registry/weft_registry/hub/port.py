"""`--http-port`: the Hub face on a port of its own, served by uvicorn in a thread.

A thread with its own event loop, so that downloads take no turns from token streams and gRPC calls. It knows HTTP's
limits and time limits; what is answered is `weft_registry.hub.app`'s.
"""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
import threading
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from weft_registry.access.authenticator import Authenticator
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import UnavailableError
from weft_registry.hub.app import HubApp
from weft_registry.hub.bodies import BodyLimits
from weft_registry.hub.commits import CommitLimits
from weft_registry.hub.staleness import marking_stale
from weft_registry.wire.tls import TlsFiles

MAX_HEADER_BYTES = 16 << 10
MAX_CONNECTIONS = 256
REQUEST_TIMEOUT_S = 10.0
"""For a request to arrive whole, and for the next one on the same connection."""
STALL_TIMEOUT_S = 60.0
"""A client that takes nothing for so long is dropped."""


class HubPort:
    """Owns the listening socket and a daemon thread. Not the registry."""

    def __init__(
        self,
        registry: EmbeddedRegistry,
        host: str,
        port: int,
        *,
        grace_s: float = 5.0,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
        stall_timeout_s: float = STALL_TIMEOUT_S,
        authenticator: Authenticator | None = None,
        tls: TlsFiles | None = None,
        body_limits: BodyLimits | None = None,
        commit_limits: CommitLimits | None = None,
    ) -> None:
        """Listens at once; 0 picks a free port. Without an `authenticator` nobody is asked who they are, and everybody
        may do what this process may. Raises `UnavailableError` for a port that is taken."""
        try:
            self._socket = _listening(host, port)
        except OSError as error:
            raise UnavailableError(
                f"cannot listen on {_address(host, port)} for HTTP: is another server there? `--http-port 0` picks a "
                f"free port ({error.strerror or error})",
                reason="CANNOT_LISTEN",
            ) from error
        self.address = _address(host, self._socket.getsockname()[1])
        """HOST:PORT, with the port that was taken."""

        class Protocol(_Protocol):
            pass

        # uvicorn makes one for each connection and passes nothing of ours on.
        Protocol.request_timeout_s, Protocol.stall_timeout_s = request_timeout_s, stall_timeout_s
        self._protocol, self._grace_s, self._tls = Protocol, grace_s, tls
        self._app = marking_stale(HubApp(registry, self.address, authenticator, body_limits, commit_limits))
        self._server: uvicorn.Server | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="weft-hub", daemon=True)
        self._thread.start()
        self._started.wait()

    @property
    def connection_count(self) -> int:
        """Clients that are connected now."""
        assert self._server is not None
        return len(self._server.server_state.connections)

    def close(self) -> None:
        """Stops listening, lets running downloads go on for the grace period, and cuts off what is left then."""
        assert self._server is not None
        self._server.should_exit = True
        self._thread.join()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        config = uvicorn.Config(
            self._app,
            http=self._protocol,
            **_tls_options(self._tls),
            loop="asyncio",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=math.ceil(self._protocol.request_timeout_s),
            timeout_graceful_shutdown=max(1, math.ceil(self._grace_s)),
        )
        self._server = uvicorn.Server(config)
        self._started.set()
        await self._server.serve(sockets=[self._socket])


class _Protocol(H11Protocol):
    """uvicorn's, which waits for ever for a request to arrive and for an answer to be taken. This one does not."""

    request_timeout_s: float
    stall_timeout_s: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._arriving: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Whatever the socket does not take at once counts as waiting: memory stays at one chunk a connection. Not 0:
        # asyncio's TLS takes an empty buffer for a full one then, and the answer stands still.
        transport.set_write_buffer_limits(high=1)
        self._await_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._await_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_request()

    def pause_writing(self) -> None:
        super().pause_writing()
        _cancel(self._stalled)
        self._stalled = self.loop.call_later(self.stall_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._stalled)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        _cancel(self._arriving)
        _cancel(self._stalled)

    def _await_request(self) -> None:
        """Begins the time of a request that is to arrive; ends it when it is here. Single bytes do not extend it."""
        if self.cycle is not None and not self.cycle.response_complete:
            _cancel(self._arriving)
            self._arriving = None
        elif self._arriving is None and not self.transport.is_closing():
            self._arriving = self.loop.call_later(self.request_timeout_s, self.transport.abort)


def _tls_options(tls: TlsFiles | None) -> dict[str, Any]:
    if tls is None:
        return {}
    options: dict[str, Any] = {"ssl_certfile": tls.cert, "ssl_keyfile": tls.key}
    if tls.client_ca is not None:
        options |= {"ssl_ca_certs": str(tls.client_ca), "ssl_cert_reqs": ssl.CERT_REQUIRED}
    return options


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        # From here on connections wait in the queue until the thread takes them.
        listening.listen(128)
    except OSError:
        listening.close()
        raise
    return listening


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
