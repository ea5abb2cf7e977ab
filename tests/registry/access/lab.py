"""A gRPC server that asks who is calling, tokens for it, and certificates: what the tests of access share."""

from __future__ import annotations

import asyncio
import ipaddress
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from weft.v1 import registry_admin_pb2_grpc
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.principal import NOBODY, Principal
from weft_registry.remote.admin import RemoteAdmin
from weft_registry.remote.registry import RemoteRegistry
from weft_registry.serve.admin_service import RegistryAdminServicer
from weft_registry.serve.authentication import AuthenticationInterceptor
from weft_registry.serve.chunks import add_registry_service
from weft_registry.serve.ports import listen
from weft_registry.serve.service import RegistryServicer
from weft_registry.wire.messages import MAX_MESSAGE_BYTES
from weft_registry.wire.status import ErrorInterceptor
from weft_registry.wire.tls import TlsFiles


@dataclass
class Asking:
    """A server, and what one says to it."""

    registry: EmbeddedRegistry
    target: str
    opened: list[Any] = field(default_factory=list)

    def token(self, name: str, *scopes: str, namespaces: Sequence[str] = ("team",)) -> str:
        """A token that was just made on the registry's own machine."""
        return self.registry.create_token(name, scopes, namespaces).secret

    def client(self, token: str | None) -> RemoteRegistry:
        """A client that says `token`; closed with the server."""
        client = RemoteRegistry(self.target, timeout_s=20.0, token=token)
        self.opened.append(client)
        return client

    def admin(self, token: str | None) -> RemoteAdmin:
        """An administrator's client; closed with the server."""
        client = RemoteAdmin(self.target, timeout_s=20.0, token=token)
        self.opened.append(client)
        return client


@contextmanager
def asking(registry: EmbeddedRegistry, anonymous: Principal = NOBODY, tls: TlsFiles | None = None) -> Iterator[Asking]:
    """Serves `registry` in a thread; whoever says no token is `anonymous`."""
    ready = threading.Event()
    box: dict[str, Any] = {}

    async def run() -> None:
        server = grpc.aio.server(
            interceptors=[ErrorInterceptor(), AuthenticationInterceptor(registry.authenticator(anonymous), registry)],
            options=[("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)],
        )
        add_registry_service(RegistryServicer(registry), server)
        registry_admin_pb2_grpc.add_RegistryAdminServiceServicer_to_server(RegistryAdminServicer(registry), server)
        box["target"] = listen(server, "127.0.0.1", 0, tls, authenticated=True)
        box["loop"], box["stop"] = asyncio.get_running_loop(), asyncio.Event()
        await server.start()
        ready.set()
        await box["stop"].wait()
        await server.stop(0)

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    assert ready.wait(20)
    server = Asking(registry, ("grpcs://" if tls else "") + box["target"])
    try:
        yield server
    finally:
        for client in server.opened:
            client.close()
        box["loop"].call_soon_threadsafe(box["stop"].set)
        thread.join(20)


@dataclass(frozen=True)
class Authority:
    """A certificate authority of a test's own."""

    directory: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, directory: Path, name: str = "an authority") -> Authority:
        """A new authority; its certificate is `ca.pem` in `directory`."""
        directory.mkdir(parents=True)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            _builder(subject, subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        (directory / "ca.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return cls(directory, key, certificate)

    @property
    def path(self) -> Path:
        """The authority's certificate."""
        return self.directory / "ca.pem"

    def issue(self, name: str) -> tuple[Path, Path]:
        """A certificate for `name` at 127.0.0.1, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = x509.SubjectAlternativeName(
            [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        )
        certificate = (
            _builder(subject, self.certificate.subject, key.public_key())
            .add_extension(names, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        cert_path, key_path = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        cert_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return cert_path, key_path


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
    )
