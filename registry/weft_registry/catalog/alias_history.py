"""Reads the history of aliases: every move, by whom. Digests in it outlive the versions that had them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from weft_registry.api import AliasMove
from weft_registry.catalog import records
from weft_registry.catalog import tables as t
from weft_registry.reference import AdapterName

MAX_STEPS = 1000
NOTHING_YET = -1
"""The sequence of a history without a move: whoever goes on after it misses nothing."""


def before(connection: Connection, adapter_id: int, alias: str, steps: int) -> str:
    """The digest that an alias named before its last `steps` moves; empty where it named none, or has not moved so
    often."""
    c = t.alias_moves.c
    statement = (
        sa.select(c.previous_digest)
        .where(c.adapter_id == adapter_id, c.alias == alias)
        .order_by(c.id.desc())
        .offset(steps - 1)
        .limit(1)
    )
    return connection.execute(statement).scalar_one_or_none() or ""


def page_moves(
    connection: Connection, adapter: AdapterName, alias: str, before_sequence: int, limit: int
) -> tuple[list[AliasMove], bool]:
    """At most `limit` moves of an adapter's aliases (of one, unless `alias` is empty), newest first, those before a
    sequence (0: from the newest on), and whether there are more. Raises `NotFoundError` for an adapter that is not
    there."""
    c = t.alias_moves.c
    statement = _moves().where(c.adapter_id == records.adapter_id(connection, adapter)).order_by(c.id.desc())
    if alias:
        statement = statement.where(c.alias == alias)
    if before_sequence:
        statement = statement.where(c.id < before_sequence)
    rows = connection.execute(statement.limit(limit + 1)).all()
    return [_move(row) for row in rows[:limit]], len(rows) > limit


def moves_after(
    connection: Connection,
    after: int,
    readable: Collection[str] | None,
    adapters: Sequence[AdapterName],
    limit: int,
) -> list[AliasMove]:
    """At most `limit` moves after a sequence, oldest first: in the namespaces `readable` (None: in all), and of these
    adapters only, unless there are none."""
    a, c = t.adapters.c, t.alias_moves.c
    statement = _readable(_moves().where(c.id > after), readable).order_by(c.id).limit(limit)
    if adapters:
        statement = statement.where(
            sa.or_(*(sa.and_(a.namespace == each.namespace, a.name == each.name) for each in adapters))
        )
    return [_move(row) for row in connection.execute(statement)]


def newest(connection: Connection, readable: Collection[str] | None = None) -> int:
    """The sequence of the last move in these namespaces (None: in all); `NOTHING_YET` if there is none.

    Not of the last move anywhere: how often others move theirs is theirs to know.
    """
    statement = sa.select(sa.func.max(t.alias_moves.c.id))
    if readable is not None:
        statement = _readable(statement.select_from(t.alias_moves.join(t.adapters)), readable)
    found = connection.execute(statement).scalar_one()
    return NOTHING_YET if found is None else int(found)


def _moves() -> sa.Select[Any]:
    return sa.select(t.alias_moves, t.adapters.c.namespace, t.adapters.c.name).join(t.adapters)


def _readable(statement: sa.Select[Any], readable: Collection[str] | None) -> sa.Select[Any]:
    return statement if readable is None else statement.where(t.adapters.c.namespace.in_(sorted(readable)))


def _move(row: Any) -> AliasMove:
    return AliasMove(
        sequence=row.id,
        adapter=AdapterName(row.namespace, row.name),
        alias=row.alias,
        digest=row.digest,
        previous_digest=row.previous_digest,
        etag=row.etag,
        moved_at=records.from_us(row.moved_at_us),
        actor=row.actor,
    )
