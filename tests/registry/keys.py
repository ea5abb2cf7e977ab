"""Keys for the tests of signatures, made as `openssl ecparam` makes them."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)


def make_keys(directory: Path, name: str = "key", password: bytes | None = None) -> tuple[Path, Path]:
    """The files of a new pair: the private key, and the public one."""
    pair = ec.generate_private_key(ec.SECP256R1())
    locked: KeySerializationEncryption = BestAvailableEncryption(password) if password else NoEncryption()
    private, public = directory / f"{name}.pem", directory / f"{name}.pub"
    private.write_bytes(pair.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))
    public.write_bytes(pair.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public
