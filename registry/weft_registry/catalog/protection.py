"""Protected aliases: those that only administrators, and the tokens named with them, may move.

A protection is of one adapter's alias, or (an empty name) of that alias in every adapter of a namespace; where there
are both, the adapter's own decides.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from weft_registry.admin_api import ProtectedAlias
from weft_registry.catalog import tables as t
from weft_registry.errors import ForbiddenError, InvalidInputError, NotFoundError, PreconditionError
from weft_registry.principal import Principal, Scope
from weft_registry.reference import LATEST, AdapterName, check_label, check_name

_MAX_TOKENS = 100
_MAX_TOKEN_NAME = 128


def protect(connection: Connection, alias: ProtectedAlias) -> ProtectedAlias:
    """Protects an alias, or says anew who may move it. Raises `InvalidInputError` for names that are none, and
    `PreconditionError` for "latest"."""
    _check(alias.namespace, alias.name, alias.alias)
    if alias.alias == LATEST:
        raise PreconditionError(
            f"{LATEST!r} follows every publish and cannot be protected: say which tokens may publish in "
            f"{alias.namespace} instead",
            reason="LATEST_NOT_PROTECTED",
        )
    names = tuple(dict.fromkeys(alias.token_names))
    if len(names) > _MAX_TOKENS or not all(0 < len(name) <= _MAX_TOKEN_NAME and name.isprintable() for name in names):
        raise InvalidInputError(
            f"token_names: at most {_MAX_TOKENS}, each of 1 to {_MAX_TOKEN_NAME} printable characters"
        )
    connection.execute(t.protected_aliases.delete().where(_is(alias.namespace, alias.name, alias.alias)))
    connection.execute(
        t.protected_aliases.insert().values(
            namespace=alias.namespace, name=alias.name, alias=alias.alias, token_names=json.dumps(names)
        )
    )
    return ProtectedAlias(alias.namespace, alias.name, alias.alias, names)


def unprotect(connection: Connection, namespace: str, name: str, alias: str) -> None:
    """Takes a protection away. Raises `NotFoundError` if there is none of exactly this name."""
    _check(namespace, name, alias)
    if connection.execute(t.protected_aliases.delete().where(_is(namespace, name, alias))).rowcount:
        return
    where = f"{namespace}/{name}" if name else f"all of {namespace}"
    raise NotFoundError(
        f"{alias} is not protected in {where}; `weft alias protected {namespace}` lists those that are",
        reason="NOT_PROTECTED",
    )


def protected_aliases(connection: Connection, namespaces: Iterable[str] | None) -> list[ProtectedAlias]:
    """The protections in these namespaces (None: in all), in the order of names."""
    c = t.protected_aliases.c
    statement = sa.select(t.protected_aliases).order_by(c.namespace, c.name, c.alias)
    if namespaces is not None:
        statement = statement.where(c.namespace.in_(sorted(namespaces)))
    return [_protected(row) for row in connection.execute(statement)]


def protection_of(connection: Connection, adapter: AdapterName, alias: str) -> ProtectedAlias | None:
    """What protects an adapter's alias, if anything does."""
    c = t.protected_aliases.c
    statement = (
        sa.select(t.protected_aliases)
        .where(c.namespace == adapter.namespace, c.name.in_(("", adapter.name)), c.alias == alias)
        .order_by(c.name.desc())
    )
    row = connection.execute(statement).first()
    return None if row is None else _protected(row)


def check_may_move(connection: Connection, principal: Principal, adapter: AdapterName, aliases: Sequence[str]) -> None:
    """Raises `ForbiddenError` if one of the aliases is protected from this identity."""
    if principal.may(Scope.ADMIN, adapter.namespace):
        return
    for alias in aliases:
        protection = protection_of(connection, adapter, alias)
        if protection is not None and principal.name not in protection.token_names:
            principal.denied(Scope.ALIAS, adapter.namespace, f"{adapter}:{alias}")
            # Who may is for administrators to know.
            raise ForbiddenError(
                f"{adapter}:{alias} is protected, and {principal.name!r} is not among the tokens that may move it: ask "
                f"an administrator of {adapter.namespace}",
                reason="ALIAS_PROTECTED",
                metadata={"adapter": str(adapter), "alias": alias},
            )


def _check(namespace: str, name: str, alias: str) -> None:
    check_name(namespace, "namespace")
    if name:
        check_name(name)
    check_label(alias, "alias")


def _is(namespace: str, name: str, alias: str) -> sa.ColumnElement[bool]:
    c = t.protected_aliases.c
    return sa.and_(c.namespace == namespace, c.name == name, c.alias == alias)


def _protected(row: Any) -> ProtectedAlias:
    return ProtectedAlias(row.namespace, row.name, row.alias, tuple(json.loads(row.token_names)))
