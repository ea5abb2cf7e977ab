"""Callers told by what a registry elsewhere says of their tokens: how long that is believed, and what if it is away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.registry.access.lab import Asking, asking
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import PreconditionError, UnauthenticatedError, UnavailableError
from weft_registry.principal import LOCAL, NOBODY, Scope, anonymous_reader
from weft_registry.remote.identities import KEPT_S, RemoteAuthenticator, asks_for_tokens


class Clock:
    """A clock that a test sets."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def asked(server: Asking, clock: Clock) -> Iterator[RemoteAuthenticator]:
    """Asks `server` about the tokens of others."""
    authenticator = RemoteAuthenticator(server.target, clock)
    yield authenticator
    authenticator.close()


def test_a_token_is_what_its_registry_says(server: Asking, asked: RemoteAuthenticator) -> None:
    token = server.token("ci", "read", "publish")
    principal = asked.principal(f"Bearer {token}")
    assert (principal.name, principal.namespaces) == ("ci", frozenset({"team"}))
    assert principal.scopes == frozenset({Scope.READ, Scope.PUBLISH})
    assert asked.principal(None) == NOBODY
    with pytest.raises(UnauthenticatedError):
        asked.principal("Bearer weft_" + "0" * 16 + "_" + "0" * 64)
    with pytest.raises(UnauthenticatedError):
        asked.principal("Bearer hf_x")


def test_a_revocation_elsewhere_holds_here_after_a_minute(
    server: Asking, asked: RemoteAuthenticator, clock: Clock
) -> None:
    header = f"Bearer {server.token('ci', 'read')}"
    assert asked.principal(header).name == "ci"
    server.registry.revoke_token("ci")
    clock.now_s = KEPT_S - 0.1
    assert asked.principal(header).name == "ci"
    clock.now_s = KEPT_S
    with pytest.raises(UnauthenticatedError, match="revoked"):
        asked.principal(header)
    # And does not come back.
    with pytest.raises(UnauthenticatedError, match="revoked"):
        asked.principal(header)


def test_nobody_is_believed_while_the_registry_is_away(registry: EmbeddedRegistry, clock: Clock) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(asking(registry))
        header = f"Bearer {server.token('ci', 'read')}"
        authenticator = RemoteAuthenticator(server.target, clock)
        assert authenticator.principal(header).name == "ci"
        stack.close()
        assert authenticator.principal(header).name == "ci"
        clock.now_s = KEPT_S
        with pytest.raises(UnavailableError):
            authenticator.principal(header)
        with pytest.raises(UnavailableError):
            authenticator.principal("Bearer weft_other")
        authenticator.close()


def test_a_registry_that_asked_nobody_is_open_until_it_says_otherwise(registry: EmbeddedRegistry, clock: Clock) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(asking(registry, LOCAL))
        assert asks_for_tokens(server.target) is False
        authenticator = RemoteAuthenticator(server.target, clock)
        assert authenticator.principal(None) is LOCAL
        stack.close()
        clock.now_s = 10 * KEPT_S
        assert authenticator.principal(None) is LOCAL
        assert asks_for_tokens(server.target) is None
        authenticator.close()


def test_anonymous_readers_of_the_registry_are_readers_here(registry: EmbeddedRegistry) -> None:
    with asking(registry, anonymous_reader()) as server:
        authenticator = RemoteAuthenticator(server.target)
        assert authenticator.principal(None).may(Scope.READ, "team")
        assert not authenticator.principal(None).may(Scope.PUBLISH, "team")
        assert asks_for_tokens(server.target) is True
        authenticator.close()


def test_who_must_ask_takes_no_open_registry_for_an_answer(registry: EmbeddedRegistry) -> None:
    with asking(registry, LOCAL) as server:
        authenticator = RemoteAuthenticator(server.target, must_ask=True)
        with pytest.raises(PreconditionError, match="--auth"):
            authenticator.principal(None)
        authenticator.close()
