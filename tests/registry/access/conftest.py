"""Fixtures of the tests of identities and rights: a real registry that asks who one is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.registry.access.lab import Asking, asking
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home


@pytest.fixture
def home(home: Home, monkeypatch: pytest.MonkeyPatch) -> Home:
    """As for all of the registry's tests, with an environment that says no token and names no files of TLS."""
    for name in ("WEFT_TOKEN", "WEFT_TLS_CA", "WEFT_TLS_CERT", "WEFT_TLS_KEY", "WEFT_PLAINTEXT_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture
def server(registry: EmbeddedRegistry) -> Iterator[Asking]:
    """A registry over gRPC that asks every caller for a token."""
    with asking(registry) as server:
        yield server
