"""Tokens: what is stored of them, who they are, and when they stop."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
import sqlalchemy as sa

from tests.backends.fresh import only_on_disk
from tests.registry.access.lab import Asking
from weft.v1 import registry_pb2 as pb
from weft_registry.access.authenticator import Authenticator
from weft_registry.catalog import records
from weft_registry.catalog import tables as t
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import (
    AlreadyExistsError,
    ForbiddenError,
    InvalidInputError,
    NotFoundError,
    UnauthenticatedError,
    WeftError,
)
from weft_registry.home import Home
from weft_registry.principal import LOCAL, NOBODY, Principal, Scope, anonymous_reader
from weft_registry.reference import AdapterName
from weft_registry.transfer import push

EVERYWHERE = ("*",)


def who(registry: EmbeddedRegistry, secret: str | None, anonymous: Principal = NOBODY) -> Principal:
    return registry.authenticator(anonymous).principal(None if secret is None else f"Bearer {secret}")


def test_a_token_names_its_holder_and_their_rights(registry: EmbeddedRegistry) -> None:
    made = registry.create_token("ci", ["publish", "read"], ["acme", "team"])
    assert re.fullmatch(r"weft_[0-9a-f]{16}_[0-9a-f]{64}", made.secret)
    principal = who(registry, made.secret)
    assert (principal.name, principal.scopes) == ("ci", frozenset({Scope.READ, Scope.PUBLISH}))
    assert principal.namespaces == {"acme", "team"}
    assert principal.may(Scope.PUBLISH, "acme")
    assert not principal.may(Scope.PUBLISH, "other")
    assert not principal.may(Scope.ADMIN, "acme")


@only_on_disk
def test_no_secret_is_in_the_registrys_files(registry: EmbeddedRegistry, home: Home) -> None:
    secret = registry.create_token("ci", ["read"], EVERYWHERE).secret
    who(registry, secret)
    random_part = secret.rpartition("_")[2].encode()
    files = [path for path in home.root.rglob("*") if path.is_file()]
    assert files
    for path in files:
        data = path.read_bytes()
        assert random_part not in data, path
        assert bytes.fromhex(random_part.decode()) not in data, path


def test_the_catalog_holds_a_hash_of_the_secret_and_nothing_else_of_it(registry: EmbeddedRegistry) -> None:
    secret = registry.create_token("ci", ["read"], EVERYWHERE).secret
    random_part = secret.rpartition("_")[2]
    with registry._catalog.read() as connection:
        row = connection.execute(sa.select(t.tokens)).one()
    assert row.secret_sha256 == "sha256:" + hashlib.sha256(random_part.encode()).hexdigest()
    assert not [value for value in row if random_part in str(value)]


@pytest.mark.parametrize(
    "said",
    [
        "weft_0000000000000000_" + "0" * 64,
        "weft_",
        "hf_abcdefgh",
        "weft_0000000000000000_" + "0" * 63,
        "weft_" + "0" * 16 + "_" + "G" * 64,
        "x" * 100_000,
        "weft_0000000000000000_" + "0" * 64 + " and more",
    ],
)
def test_what_is_no_token_of_this_registry_is_refused(registry: EmbeddedRegistry, said: str) -> None:
    registry.create_token("ci", ["read"], EVERYWHERE)
    with pytest.raises(UnauthenticatedError, match="weft token create"):
        who(registry, said)


@pytest.mark.parametrize("scheme", ["Basic", "Token", "", "BearerX"])
def test_another_scheme_is_refused(registry: EmbeddedRegistry, scheme: str) -> None:
    secret = registry.create_token("ci", ["read"], EVERYWHERE).secret
    with pytest.raises(UnauthenticatedError):
        registry.authenticator(NOBODY).principal(f"{scheme} {secret}".strip())
    assert registry.authenticator(NOBODY).principal(f"bearer  {secret}").name == "ci"


def test_a_wrong_secret_is_told_nothing_about_the_token(registry: EmbeddedRegistry) -> None:
    revoked = registry.create_token("secret-project", ["read"], EVERYWHERE).secret
    registry.revoke_token("secret-project")
    guess = revoked[:-1] + ("0" if revoked[-1] != "0" else "1")
    unknown = "weft_" + "f" * 16 + "_" + "0" * 64

    def refusal(secret: str) -> WeftError:
        with pytest.raises(UnauthenticatedError) as caught:
            who(registry, secret)
        return caught.value

    assert (refusal(guess).message, refusal(guess).reason) == (refusal(unknown).message, refusal(unknown).reason)
    assert "secret-project" not in refusal(guess).message
    assert refusal(revoked).reason == "TOKEN_REVOKED"


def test_a_token_expires_when_it_was_said_to(registry: EmbeddedRegistry) -> None:
    expires_at = datetime.now(UTC) + timedelta(hours=1)
    secret = registry.create_token("ci", ["read"], EVERYWHERE, expires_at).secret
    clock = records.to_us(expires_at) - 1
    authenticator = Authenticator(registry._catalog, NOBODY, lambda: clock)
    assert authenticator.principal(f"Bearer {secret}").expires_at == expires_at
    clock += 1
    with pytest.raises(UnauthenticatedError, match="expired") as caught:
        authenticator.principal(f"Bearer {secret}")
    assert caught.value.reason == "TOKEN_EXPIRED"


def test_a_revocation_holds_at_once_in_every_process(registry: EmbeddedRegistry, home: Home) -> None:
    secret = registry.create_token("ci", ["read"], EVERYWHERE).secret
    other = EmbeddedRegistry(home)
    try:
        assert who(other, secret).name == "ci"
        ended = registry.revoke_token("ci")
        assert ended.revoked_at is not None
        for opened in (registry, other):
            with pytest.raises(UnauthenticatedError, match="revoked"):
                who(opened, secret)
        assert registry.revoke_token(ended.id) == ended
    finally:
        other.close()


def test_a_stream_does_not_outlive_its_token(
    server: Asking, new_artifact: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft_registry.serve.authentication.RECHECK_S", 0.0)
    push(server.registry, new_artifact(), AdapterName("team", "support"), tags=["v1"])
    stub = server.client(server.token("watcher", "read"))._stub
    moves = stub.WatchAliases(pb.WatchAliasesRequest(), timeout=20)
    next(moves)
    server.registry.revoke_token("watcher")
    server.registry.set_alias(AdapterName("team", "support"), "production", "v1")
    with pytest.raises(grpc.RpcError) as caught:
        next(moves)
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]


def test_who_says_nothing_is_whom_the_registry_takes_them_for(registry: EmbeddedRegistry) -> None:
    assert who(registry, None) == NOBODY
    assert who(registry, None, anonymous_reader()).may(Scope.READ, "acme")
    assert not who(registry, None, anonymous_reader()).may(Scope.PUBLISH, "acme")
    assert who(registry, None, LOCAL) is LOCAL


def test_a_registry_that_asks_nobody_minds_no_tokens_of_others(registry: EmbeddedRegistry) -> None:
    assert who(registry, "hf_whatever", LOCAL) is LOCAL
    secret = registry.create_token("ci", ["read"], EVERYWHERE).secret
    assert who(registry, secret, LOCAL).name == "ci"
    registry.revoke_token("ci")
    with pytest.raises(UnauthenticatedError):
        who(registry, secret, LOCAL)


def test_a_token_grants_no_more_than_its_maker_has(registry: EmbeddedRegistry) -> None:
    team = registry.acting_as(who(registry, registry.create_token("lead", ["admin"], ["team"]).secret))
    assert team.create_token("mine", ["admin"], ["team"]).token.created_by == "lead"
    for namespaces in (["acme"], ["team", "acme"], ["*"]):
        with pytest.raises(ForbiddenError):
            team.create_token("theirs", ["read"], namespaces)
    publisher = registry.acting_as(who(registry, registry.create_token("ci", ["publish"], ["team"]).secret))
    with pytest.raises(ForbiddenError):
        publisher.create_token("more", ["read"], ["team"])
    assert [token.name for token in registry.list_tokens()] == ["ci", "lead", "mine"]


def test_a_token_does_not_outlive_the_one_that_made_it(registry: EmbeddedRegistry) -> None:
    until = datetime.now(UTC) + timedelta(days=1)
    lead = registry.acting_as(who(registry, registry.create_token("lead", ["admin"], ["team"], until).secret))
    for later in (None, until + timedelta(seconds=1)):
        with pytest.raises(ForbiddenError, match="outlives"):
            lead.create_token("forever", ["read"], ["team"], later)
    assert lead.create_token("shorter", ["read"], ["team"], until).token.expires_at is not None


def test_administrators_of_a_namespace_see_and_end_its_tokens_alone(registry: EmbeddedRegistry) -> None:
    registry.create_token("ours", ["read"], ["team"])
    registry.create_token("theirs", ["read"], ["acme"])
    registry.create_token("both", ["read"], ["acme", "team"])
    lead = registry.acting_as(Principal("lead", frozenset({Scope.ADMIN}), frozenset({"team"})))
    assert [token.name for token in lead.list_tokens()] == ["ours"]
    for name in ("theirs", "both", "nobody"):
        with pytest.raises(NotFoundError) as caught:
            lead.revoke_token(name)
        assert caught.value.message == f"no token {name!r}: `weft token list --all` shows those that you may end"
    lead.revoke_token("ours")
    assert lead.list_tokens() == []
    assert [token.name for token in lead.list_tokens(include_ended=True)] == ["ours"]


def test_a_name_is_never_used_twice(registry: EmbeddedRegistry) -> None:
    registry.create_token("ci", ["read"], ["team"])
    registry.revoke_token("ci")
    with pytest.raises(AlreadyExistsError, match="another name"):
        registry.create_token("ci", ["read"], ["team"])


@pytest.mark.parametrize(
    ("name", "scopes", "namespaces"),
    [
        ("local", ["read"], ["team"]),
        ("anonymous", ["read"], ["team"]),
        ("", ["read"], ["team"]),
        ("two words", ["read"], ["team"]),
        ("line\nbreak", ["read"], ["team"]),
        ("x" * 129, ["read"], ["team"]),
        ("ci", [], ["team"]),
        ("ci", ["root"], ["team"]),
        ("ci", ["read"], []),
        ("ci", ["read"], ["UPPER"]),
        ("ci", ["read"], ["a/b"]),
        ("ci", ["read"], [f"n{i}" for i in range(101)]),
    ],
)
def test_what_is_no_token_cannot_be_made(
    registry: EmbeddedRegistry, name: str, scopes: list[str], namespaces: list[str]
) -> None:
    with pytest.raises(InvalidInputError):
        registry.create_token(name, scopes, namespaces)
    assert registry.list_tokens(include_ended=True) == []


def test_a_token_of_the_past_cannot_be_made(registry: EmbeddedRegistry) -> None:
    with pytest.raises(InvalidInputError, match="past"):
        registry.create_token("ci", ["read"], ["team"], datetime.now(UTC) - timedelta(seconds=1))
