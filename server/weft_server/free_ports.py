"""Whether this server will be able to listen, asked before the engine is built, which takes seconds to minutes."""

from __future__ import annotations

import socket

from weft_registry.errors import InvalidInputError, UnavailableError
from weft_server.options import ServeOptions


def check_ports(options: ServeOptions) -> None:
    """Raises `UnavailableError` for a port that is taken or a host that is no address of this machine, in the words of
    whoever will listen there, and `InvalidInputError` for two options that name one port.

    Nothing is held: a port that somebody takes meanwhile is found when the server listens.
    """
    host = options.host
    ports = {"--port": options.port, "--http-port": options.http_port, "--metrics-port": options.metrics_port}
    by_port: dict[int, str] = {}
    for option, port in ports.items():
        if port is None:
            continue
        if port and by_port.setdefault(port, option) != option:
            raise InvalidInputError(f"{by_port[port]} and {option} are both {port}: give one of them another, or 0")
        try:
            _bind(host, port)
        except OSError as error:
            wanted = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            what = {"--http-port": " for HTTP", "--metrics-port": " for metrics"}.get(option, "")
            where = f", or {host} no address of this machine" if option == "--port" else ""
            raise UnavailableError(
                f"cannot listen on {wanted}{what}: is another server there{where}? `{option} 0` picks a free port "
                f"({error.strerror or error})",
                reason="CANNOT_LISTEN",
            ) from error


def _bind(host: str, port: int) -> None:
    """Binds a socket and closes it. Raises `OSError` where none of the host's addresses can be bound."""
    problem = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        with socket.socket(family, kind, protocol) as probe:
            # As all that will listen do: connections of an earlier server, which are closing still, keep no port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
                return
            except OSError as error:
                problem = error
    raise problem
