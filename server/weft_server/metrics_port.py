"""`--metrics-port`: the server's metrics over HTTP, for Prometheus. It answers GET /metrics, and nothing else."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.registry import Collector

from weft_registry.errors import UnavailableError

_log = logging.getLogger(__name__)
PATH = "/metrics"
_App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class MetricsPort:
    """Owns the listening socket and a daemon thread. Every scrape asks the collector; nothing is kept between two."""

    def __init__(self, collector: Collector, host: str, port: int) -> None:
        """Listens at once. Raises `UnavailableError` for a port that is taken or a host that is not here."""
        registry = CollectorRegistry()
        registry.register(collector)
        server_class = _SixServer if ":" in host else _Server
        try:
            self._server = server_class((host, port), _Quiet)
        except OSError as error:
            raise UnavailableError(
                f"cannot listen on {_address(host, port)} for metrics: is another server there? `--metrics-port 0` "
                f"picks a free port ({error.strerror or error})",
                reason="CANNOT_LISTEN",
            ) from error
        self._server.set_app(_only_metrics(make_wsgi_app(registry)))
        self.address = _address(host, self._server.server_address[1])
        """HOST:PORT, with the port that was taken."""
        self._thread = threading.Thread(target=self._server.serve_forever, name="weft-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening. Not to be called from the thread that the collector waits for."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _only_metrics(app: _App) -> _App:
    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] != PATH:
            start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
            return [f"only {PATH} is here\n".encode()]
        try:
            return app(environ, start_response)
        except UnavailableError as error:
            start_response("503 Service Unavailable", [("Content-Type", "text/plain; charset=utf-8")])
            return [f"{error.message}\n".encode()]

    return answer


class _Server(ThreadingMixIn, WSGIServer):
    """One thread a scrape, so that a reader who stalls holds up nobody."""

    daemon_threads = True

    def server_bind(self) -> None:
        """As its parent, which in between asks the name service who this machine is, and may wait long for that."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        """A reader who went away, or never asked, is no news."""
        _log.debug("a scrape from %s broke off", client_address, exc_info=True)


class _SixServer(_Server):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    """Logs no scrapes; one that sends nothing is dropped."""

    timeout = 30

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
