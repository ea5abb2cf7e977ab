"""Keys in files: elliptic curve keys in PEM, as `openssl ecparam -genkey` and `openssl ec -pubout` write them.

Needs the extra `sign`, as all that signs and verifies does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from weft_registry import digest as digests
from weft_registry.errors import InvalidInputError, NotFoundError, UnsupportedError

_MAX_BYTES = 1 << 16
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_HOW = "openssl ecparam -name prime256v1 -genkey -noout -out key.pem; openssl ec -in key.pem -pubout -out key.pub"


@dataclass(frozen=True)
class PublicKey:
    """A public key, and the file that it was read from."""

    path: Path
    digest: str
    """Of its SubjectPublicKeyInfo in DER: what its signatures are filed under."""
    pem: bytes = field(repr=False)
    """What the file held when it was read: whoever replaces the file later changes nothing."""


def read_public(path: Path) -> PublicKey:
    """A public key.

    Raises `InvalidInputError` (`BAD_KEY`) for what is none, `NotFoundError`, and `UnsupportedError` without the extra.
    """
    with needs_extra():
        from cryptography.hazmat.primitives import serialization

    data = _read(path)
    if b"PRIVATE KEY" in data:
        raise InvalidInputError(
            f"{path} holds a private key: to verify, give the public one (openssl ec -in {path} -pubout)",
            reason="BAD_KEY",
        )
    try:
        key = serialization.load_pem_public_key(data)
    except ValueError as error:
        raise _bad(path, str(error)) from error
    return PublicKey(path, _digest(path, key), data)


def digest_of_private(path: Path, password: bytes | None = None) -> str:
    """The digest of the public half of a private key. Raises as `read_public`, and for a wrong password."""
    with needs_extra():
        from cryptography.hazmat.primitives import serialization

    data = _read(path)
    if b"PUBLIC KEY" in data:
        raise InvalidInputError(f"{path} holds a public key: to sign, give the private one", reason="BAD_KEY")
    try:
        key = serialization.load_pem_private_key(data, password)
    except TypeError as error:
        # A password for a key that has none, or none for one that has.
        raise InvalidInputError(f"{path}: {error} (WEFT_KEY_PASSWORD)", reason="BAD_KEY") from error
    except ValueError as error:
        raise _bad(path, str(error)) from error
    return _digest(path, key.public_key())


@contextmanager
def needs_extra() -> Iterator[None]:
    """Around imports: says which extra is missing instead of failing on one."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"signatures need {(error.name or '').partition('.')[0]}, which is not installed: pip install 'weft[sign]'",
            reason="NOT_INSTALLED",
        ) from error


def _digest(path: Path, key: object) -> str:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise _bad(path, f"only elliptic curve keys on {', '.join(_CURVES)} are used")
    return digests.of_bytes(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES)
    except FileNotFoundError:
        raise NotFoundError(f"no key at {path}; make one: {_HOW}", reason="KEY_NOT_FOUND") from None


def _bad(path: Path, why: str) -> InvalidInputError:
    return InvalidInputError(f"{path} is no key that signs versions ({why}); make one: {_HOW}", reason="BAD_KEY")
