"""Who a call comes from, by its `authorization` header. The one place where secrets are compared.

Nothing is cached: a token is one row by its primary key, and a revocation holds from its commit on, in every process
that uses the catalog.
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from weft_registry import digest as digests
from weft_registry.catalog import records
from weft_registry.catalog import tables as t
from weft_registry.catalog.database import Catalog
from weft_registry.errors import UnauthenticatedError
from weft_registry.principal import LOCAL, Principal, Scope

TOKEN = re.compile(r"weft_([0-9a-f]{16})_([0-9a-f]{64})")
"""A token as its holder says it: `weft_`, its id, and a secret of 256 random bits."""
_NO_SECRET = "sha256:" + "0" * 64
_WAY_OUT = "ask an administrator for one (`weft token create`), and give it with `weft login` or WEFT_TOKEN"


class Authenticator:
    """Turns headers into principals. Owns nothing; thread-safe."""

    def __init__(self, catalog: Catalog, anonymous: Principal, now_us: Callable[[], int] = records.now_us) -> None:
        """`anonymous` is who a call without a token comes from: `NOBODY`, `anonymous_reader()`, or `LOCAL` where nobody
        has to say who they are."""
        self._catalog, self._anonymous, self._now_us = catalog, anonymous, now_us

    @property
    def anonymous(self) -> Principal:
        """Who a call without a token comes from."""
        return self._anonymous

    def principal(self, authorization: str | None) -> Principal:
        """Who says `Bearer weft_...` (None: nobody says anything).

        Raises `UnauthenticatedError` for what is no token, an unknown, expired or revoked one. That a token expired or
        was revoked is said only to who knows its secret. Where nobody has to say who they are, what is no token of
        Weft (other programs send theirs to whatever answers) is as good as none.
        """
        scheme, _, said = (authorization or "").strip().partition(" ")
        match = TOKEN.fullmatch(said.strip())
        if not scheme or (match is None and self._anonymous is LOCAL):
            return self._anonymous
        if match is None or scheme.lower() != "bearer":
            raise UnauthenticatedError(
                f"authorization: not `Bearer weft_...`, which is how a token is said: {_WAY_OUT}",
                reason="TOKEN_INVALID",
            )
        row = self._row(match[1])
        stored = row.secret_sha256 if row is not None else _NO_SECRET
        if not hmac.compare_digest(stored, digests.of_bytes(match[2].encode())) or row is None:
            raise UnauthenticatedError(f"the token is not one of this registry: {_WAY_OUT}", reason="TOKEN_INVALID")
        if row.revoked_at_us is not None:
            raise UnauthenticatedError(f"token {row.name!r} was revoked: {_WAY_OUT}", reason="TOKEN_REVOKED")
        if row.expires_at_us is not None and row.expires_at_us <= self._now_us():
            at = records.from_us(row.expires_at_us).isoformat(timespec="seconds")
            raise UnauthenticatedError(f"token {row.name!r} expired at {at}: {_WAY_OUT}", reason="TOKEN_EXPIRED")
        return Principal(
            row.name,
            frozenset(Scope(scope) for scope in json.loads(row.scopes)),
            frozenset(json.loads(row.namespaces)),
            expires_at=None if row.expires_at_us is None else records.from_us(row.expires_at_us),
        )

    def _row(self, token_id: str) -> Any:
        with self._catalog.read() as connection:
            return connection.execute(sa.select(t.tokens).where(t.tokens.c.id == token_id)).one_or_none()
