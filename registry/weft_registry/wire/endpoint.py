"""Where a server is, as people write it: `HOST:PORT`, or `grpcs://HOST:PORT` over TLS."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from weft_registry.errors import InvalidInputError

TLS = "grpcs://"


@dataclass(frozen=True)
class Endpoint:
    """One server's address."""

    address: str
    """HOST:PORT, without a scheme."""
    tls: bool

    @classmethod
    def parse(cls, target: str) -> Endpoint:
        """Parses a target. Raises `InvalidInputError` for another scheme."""
        scheme, separator, rest = target.partition("://")
        if not separator:
            return cls(target, tls=False)
        if scheme not in ("grpc", "grpcs") or not rest or "/" in rest:
            raise InvalidInputError(f"{target[:200]!r} is no address: HOST:PORT, or {TLS}HOST:PORT over TLS")
        return cls(rest, tls=scheme == "grpcs")

    @property
    def local(self) -> bool:
        """Whether what is sent there stays on this machine."""
        return self.address.startswith(("unix:", "unix-abstract:")) or is_loopback(self.address.rpartition(":")[0])


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`, an address or "localhost"."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
