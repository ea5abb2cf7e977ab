"""Tokens: made, listed and revoked inside catalog transactions. Their secrets are compared in `authenticator`.

A token never grants more than its maker has: an administrator of one namespace makes tokens for that namespace, and
none that outlives its own.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from weft_registry import digest as digests
from weft_registry.admin_api import NewToken, Token
from weft_registry.catalog import audit, records
from weft_registry.catalog import tables as t
from weft_registry.errors import AlreadyExistsError, ForbiddenError, InvalidInputError, NotFoundError
from weft_registry.principal import ANONYMOUS, EVERY, LOCAL, Principal, Scope
from weft_registry.reference import check_name

MAX_NAMESPACES = 100
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._@-]{0,126}[A-Za-z0-9])?")
_RESERVED = frozenset({LOCAL.name, ANONYMOUS})


def create(
    connection: Connection,
    maker: Principal,
    name: str,
    scopes: Sequence[str],
    namespaces: Sequence[str],
    expires_at: datetime | None,
) -> NewToken:
    """Makes a token. `namespaces` of ["*"] means every one; `expires_at` in UTC.

    Raises `InvalidInputError` for what is none, `AlreadyExistsError` for a taken name (a revoked token keeps its own),
    `ForbiddenError` for more than the maker has.
    """
    granted, where = _checked(name, scopes, namespaces)
    if expires_at is not None and expires_at.tzinfo is None:
        expires_at = expires_at.replace(tzinfo=UTC)
    if expires_at is not None and expires_at <= records.from_us(records.now_us()):
        raise InvalidInputError(f"expires_at: {expires_at.isoformat(timespec='seconds')} is past")
    for namespace in where:
        maker.check(Scope.ADMIN, namespace)
    if maker.expires_at is not None and (expires_at is None or expires_at > maker.expires_at):
        at = maker.expires_at.isoformat(timespec="seconds")
        raise ForbiddenError(
            f"token {maker.name!r} expires at {at}, and cannot make one that outlives it: let that expire, too"
        )
    c = t.tokens.c
    if connection.execute(sa.select(c.id).where(c.name == name)).first() is not None:
        raise AlreadyExistsError(
            f"there is a token {name!r} already, perhaps a revoked one: histories name it, so take another name",
            metadata={"name": name},
        )
    token_id, secret = secrets.token_hex(8), secrets.token_hex(32)
    row = {
        "id": token_id,
        "name": name,
        "secret_sha256": digests.of_bytes(secret.encode()),
        "scopes": json.dumps(granted),
        "namespaces": json.dumps(where),
        "created_at_us": records.now_us(),
        "created_by": maker.name,
        "expires_at_us": None if expires_at is None else records.to_us(expires_at),
    }
    connection.execute(t.tokens.insert().values(row))
    detail = {"id": token_id, "scopes": granted, "namespaces": where}
    audit.record(connection, maker.name, "token.create", _audited(where), name, detail)
    made = connection.execute(sa.select(t.tokens).where(c.id == token_id)).one()
    return NewToken(_token(made), f"weft_{token_id}_{secret}")


def listed(connection: Connection, reader: Principal, *, include_ended: bool) -> list[Token]:
    """The tokens by name that hold only where `reader` is an administrator."""
    now = records.now_us()
    rows = connection.execute(sa.select(t.tokens).order_by(t.tokens.c.name))
    return [
        _token(row)
        for row in rows
        if _administers(reader, row)
        and (include_ended or (row.revoked_at_us is None and (row.expires_at_us is None or row.expires_at_us > now)))
    ]


def revoke(connection: Connection, revoker: Principal, token: str) -> Token:
    """Ends a token, named by its name or its id, from this transaction's commit on. Revoking twice changes nothing.

    Raises `NotFoundError` for one that is not there, or that holds where `revoker` is no administrator.
    """
    c = t.tokens.c
    # A name may look like another token's id: the name decides.
    rows = connection.execute(sa.select(t.tokens).where(sa.or_(c.name == token, c.id == token))).all()
    row = next((row for row in rows if row.name == token), rows[0] if rows else None)
    if row is None or not _administers(revoker, row):
        raise NotFoundError(
            f"no token {token[:150]!r}: `weft token list --all` shows those that you may end",
            reason="TOKEN_NOT_FOUND",
            metadata={"token": token[:150]},
        )
    if row.revoked_at_us is None:
        connection.execute(t.tokens.update().where(c.id == row.id).values(revoked_at_us=records.now_us()))
        where = json.loads(row.namespaces)
        audit.record(connection, revoker.name, "token.revoke", _audited(where), row.name, {"id": row.id})
    return _token(connection.execute(sa.select(t.tokens).where(c.id == row.id)).one())


def _checked(name: str, scopes: Sequence[str], namespaces: Sequence[str]) -> tuple[list[str], list[str]]:
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise InvalidInputError(
            f"name: {name[:150]!r}: letters, digits, '.', '_', '-' and '@', at most 128 characters, and neither "
            f"{LOCAL.name!r} nor {ANONYMOUS!r}"
        )
    known = [scope.value for scope in Scope]
    if not scopes or set(scopes) - set(known):
        raise InvalidInputError(f"scopes: {', '.join(scopes)[:200]!r}: one or more of {', '.join(known)}")
    if not namespaces or len(namespaces) > MAX_NAMESPACES:
        raise InvalidInputError(
            f"namespaces: {len(namespaces)} of them: from 1 to {MAX_NAMESPACES}, or {EVERY!r} for every one"
        )
    if EVERY in namespaces:
        return sorted(set(scopes), key=known.index), [EVERY]
    for namespace in namespaces:
        check_name(namespace, "namespaces")
    return sorted(set(scopes), key=known.index), sorted(set(namespaces))


def _administers(reader: Principal, row: Any) -> bool:
    return all(reader.may(Scope.ADMIN, namespace) for namespace in json.loads(row.namespaces))


def _audited(namespaces: Sequence[str]) -> str:
    """The namespace that a token's audit lines are in: its only one, or that of the registry as a whole."""
    return namespaces[0] if len(namespaces) == 1 and namespaces[0] != EVERY else ""


def _token(row: Any) -> Token:
    return Token(
        id=row.id,
        name=row.name,
        scopes=frozenset(json.loads(row.scopes)),
        namespaces=frozenset(json.loads(row.namespaces)),
        created_at=records.from_us(row.created_at_us),
        created_by=row.created_by,
        expires_at=None if row.expires_at_us is None else records.from_us(row.expires_at_us),
        revoked_at=None if row.revoked_at_us is None else records.from_us(row.revoked_at_us),
    )
