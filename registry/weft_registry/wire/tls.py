"""The files of TLS: a server's certificate and key, and the authority whose client certificates it asks for."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from weft_registry.errors import InvalidInputError


@dataclass(frozen=True)
class TlsFiles:
    """What a server shows, and what it asks for. All in PEM."""

    cert: Path
    """The certificate, followed by those of its issuers except the root."""
    key: Path
    """Its private key, without a passphrase."""
    client_ca: Path | None = None
    """Authorities: every client must then show a certificate by one of them (mTLS). None asks for none."""

    def check(self) -> None:
        """Raises `InvalidInputError` that says which file is missing, is no PEM, or does not belong to the other."""
        for option, path in (("--tls-cert", self.cert), ("--tls-key", self.key), ("--tls-client-ca", self.client_ca)):
            if path is not None:
                _read(option, path)
        _check_pair("--tls-cert", self.cert, "--tls-key", self.key)
        if self.client_ca is not None:
            check_authority("--tls-client-ca", self.client_ca)


def check_authority(option: str, path: Path) -> bytes:
    """The authorities' certificates in PEM. Raises `InvalidInputError` for a file that holds none."""
    data = _read(option, path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError as error:
        raise InvalidInputError(f"{option} {path}: no certificates in PEM ({_reason(error)})") from error
    return data


def tls_files(cert: Path | None, key: Path | None, client_ca: Path | None) -> TlsFiles | None:
    """What the three options say, checked; None if none is given. Raises `InvalidInputError`."""
    if cert is None and key is None:
        if client_ca is not None:
            raise InvalidInputError("--tls-client-ca: clients can be asked only over TLS: add --tls-cert and --tls-key")
        return None
    if cert is None or key is None:
        raise InvalidInputError("--tls-cert and --tls-key: TLS needs both")
    files = TlsFiles(cert, key, client_ca)
    files.check()
    return files


def client_files(cert: Path, key: Path) -> tuple[bytes, bytes]:
    """A client's certificate and key, which WEFT_TLS_CERT and WEFT_TLS_KEY name. Raises `InvalidInputError`."""
    found = _read("WEFT_TLS_CERT", cert), _read("WEFT_TLS_KEY", key)
    _check_pair("WEFT_TLS_CERT", cert, "WEFT_TLS_KEY", key)
    return found


def _check_pair(cert_option: str, cert: Path, key_option: str, key: Path) -> None:
    try:
        # A passphrase would be asked for on the terminal, and the server would stand still.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: b"")
    except (ssl.SSLError, ValueError) as error:
        raise InvalidInputError(
            f"{cert_option} {cert} and {key_option} {key}: not a certificate and its unencrypted private key in PEM "
            f"({_reason(error)})"
        ) from error


def _read(option: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"{option} {path}: cannot be read ({error.strerror or error})") from error


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or str(error)
