"""Listens for gRPC, in the clear or over TLS. Both servers use it."""

from __future__ import annotations

import sys

import grpc

from weft_registry.errors import UnavailableError
from weft_registry.wire.endpoint import is_loopback
from weft_registry.wire.tls import TlsFiles


def listen(server: grpc.aio.Server, host: str, port: int, tls: TlsFiles | None, *, authenticated: bool) -> str:
    """Binds a port (0: a free one) and returns HOST:PORT. Warns on stderr of what others can reach and should not.

    Raises `UnavailableError` for a port that is taken.
    """
    wanted = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = server.add_secure_port(wanted, _credentials(tls)) if tls else server.add_insecure_port(wanted)
    except RuntimeError as error:
        raise UnavailableError(
            f"cannot listen on {wanted}: is another server there, or {host} no address of this machine? `--port 0` "
            f"picks a free port ({error})",
            reason="CANNOT_LISTEN",
        ) from error
    if not is_loopback(host):
        for line in exposed(host, tls, authenticated=authenticated):
            print(line, file=sys.stderr, flush=True)
    return f"{wanted.rpartition(':')[0]}:{bound}"


def exposed(host: str, tls: TlsFiles | None, *, authenticated: bool) -> list[str]:
    """What whoever starts a server that other machines reach should know."""
    if not authenticated and not (tls and tls.client_ca):
        return [f"warning: {host} is reachable from other machines, and this server asks nobody who they are"]
    if tls is None:
        return [f"warning: {host} is reachable from other machines, and tokens travel there unencrypted: --tls-cert"]
    return []


def _credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials(
        [(tls.key.read_bytes(), tls.cert.read_bytes())],
        root_certificates=tls.client_ca.read_bytes() if tls.client_ca else None,
        require_client_auth=tls.client_ca is not None,
    )
