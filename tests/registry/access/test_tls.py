"""TLS and mTLS, with certificates of the test's own."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest

from tests.registry.access.lab import Authority, asking
from weft.v1 import registry_pb2 as pb
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import (
    InvalidInputError,
    NotFoundError,
    PreconditionError,
    UnauthenticatedError,
)
from weft_registry.principal import LOCAL
from weft_registry.remote.registry import RemoteRegistry
from weft_registry.wire.login import token_for
from weft_registry.wire.tls import TlsFiles, tls_files


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.make(tmp_path / "authority")


def test_a_token_goes_over_tls_to_who_trusts_the_authority(
    registry: EmbeddedRegistry, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    with asking(registry, tls=TlsFiles(*authority.issue("server"))) as server:
        token = server.token("ci", "read")
        monkeypatch.setenv("WEFT_TLS_CA", str(authority.path))
        assert server.target.startswith("grpcs://")
        assert server.client(token).who_am_i().name == "ci"
        with pytest.raises(UnauthenticatedError):
            server.client(None).who_am_i()


def test_a_server_of_another_authority_is_told_nothing(
    registry: EmbeddedRegistry, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Authority.make(tmp_path / "other", "another authority")
    with asking(registry, tls=TlsFiles(*authority.issue("server"))) as server:
        token = server.token("ci", "read")
        monkeypatch.setenv("WEFT_TLS_CA", str(other.path))
        assert status(server.client(token)) == grpc.StatusCode.UNAVAILABLE


def status(client: RemoteRegistry) -> grpc.StatusCode:
    """What the first attempt at a call ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        client._stub.WhoAmI(pb.WhoAmIRequest(), timeout=20.0)
    code: grpc.StatusCode = caught.value.code()  # type: ignore[attr-defined]
    return code


def test_with_a_client_authority_only_those_it_knows_get_in(
    registry: EmbeddedRegistry, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = Authority.make(tmp_path / "clients", "the clients' authority")
    cert, key = clients.issue("build-7")
    strange_cert, strange_key = Authority.make(tmp_path / "strangers", "strangers").issue("stranger")
    monkeypatch.setenv("WEFT_TLS_CA", str(authority.path))
    with asking(registry, tls=TlsFiles(*authority.issue("server"), client_ca=clients.path)) as server:
        token = server.token("ci", "read")
        for shown in ((None, None), (strange_cert, strange_key)):
            for name, path in zip(("WEFT_TLS_CERT", "WEFT_TLS_KEY"), shown, strict=True):
                monkeypatch.setenv(name, str(path or ""))
            assert status(server.client(token)) == grpc.StatusCode.UNAVAILABLE
        monkeypatch.setenv("WEFT_TLS_CERT", str(cert))
        monkeypatch.setenv("WEFT_TLS_KEY", str(key))
        assert server.client(token).who_am_i().name == "ci"
        # A certificate names a machine in the log; it grants nothing.
        with pytest.raises(UnauthenticatedError):
            server.client(None).who_am_i()
        with pytest.raises(NotFoundError):
            server.client(token).resolve("acme/secret")
    details = [json.loads(entry.detail_json) for entry in registry.audit_entries(action="denied")]
    assert [detail["peer"] for detail in details] == ["build-7 (127.0.0.1)"] * 2


def test_files_that_are_none_are_named(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.issue("server")
    other_key = authority.issue("other")[1]
    garbage = tmp_path / "garbage"
    garbage.write_text("nothing")
    for files, word in (
        ((tmp_path / "missing", key, None), "--tls-cert .*missing: cannot be read"),
        ((cert, tmp_path / "missing", None), "--tls-key .*missing: cannot be read"),
        ((cert, other_key, None), "--tls-cert .* and --tls-key"),
        ((garbage, key, None), "--tls-cert .*garbage"),
        ((cert, key, garbage), "--tls-client-ca .*garbage"),
        ((cert, key, tmp_path), "--tls-client-ca"),
        ((cert, None, None), "needs both"),
        ((None, None, cert), "add --tls-cert"),
    ):
        with pytest.raises(InvalidInputError, match=word):
            tls_files(*files)
    assert tls_files(cert, key, None) == TlsFiles(cert, key)
    assert tls_files(None, None, None) is None


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(authority: Authority) -> None:
    from cryptography.hazmat.primitives import serialization

    cert, key = authority.issue("server")
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        loaded.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"a passphrase"),
        )
    )
    with pytest.raises(InvalidInputError, match="unencrypted"):
        tls_files(cert, key, None)


@pytest.mark.parametrize("target", ["registry.example:50052", "10.0.0.1:50052", "[2001:db8::1]:50052"])
def test_a_token_is_not_sent_in_the_clear_to_another_machine(
    target: str, home: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PreconditionError, match="grpcs://"):
        RemoteRegistry(target, token="weft_x")
    monkeypatch.setenv("WEFT_TOKEN", "weft_x")
    with pytest.raises(PreconditionError, match="grpcs://"):
        RemoteRegistry(target)
    assert token_for(f"grpcs://{target}") == "weft_x"
    monkeypatch.setenv("WEFT_PLAINTEXT_TOKEN", "yes")
    assert token_for(target) == "weft_x"


@pytest.mark.parametrize("target", ["127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/tmp/x"])
def test_on_this_machine_it_may(target: str, home: object) -> None:
    assert token_for(target, "weft_x") == "weft_x"


def test_other_schemes_are_refused(home: object) -> None:
    for target in ("https://registry.example", "http://127.0.0.1:1", "grpcs://", "grpcs://a/b"):
        with pytest.raises(InvalidInputError, match="grpcs://HOST:PORT"):
            RemoteRegistry(target)


def test_whoever_starts_a_server_hears_what_others_can_see(capfd: pytest.CaptureFixture[str]) -> None:
    from weft_registry.serve.ports import exposed

    assert "asks nobody" in exposed("0.0.0.0", None, authenticated=False)[0]
    assert "unencrypted" in exposed("0.0.0.0", None, authenticated=True)[0]
    files = TlsFiles(Path("a"), Path("b"))
    assert exposed("0.0.0.0", files, authenticated=True) == []
    assert "asks nobody" in exposed("0.0.0.0", files, authenticated=False)[0]
    assert LOCAL.everywhere
