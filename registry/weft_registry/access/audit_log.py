"""The audit log, read: newest first, by page, as far as an administrator may see it."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy import Connection

from weft_registry.admin_api import AuditEntry
from weft_registry.catalog import records
from weft_registry.catalog import tables as t
from weft_registry.principal import Principal


def page(
    connection: Connection,
    reader: Principal,
    namespace: str,
    actor: str,
    action: str,
    since: datetime | None,
    before: int,
    limit: int,
) -> tuple[list[AuditEntry], bool]:
    """At most `limit` entries older than the entry `before` (0: from the newest on), and whether there are more.

    An empty `namespace` means those that `reader` administers, which has been checked; only whoever administers all of
    them sees what concerns the registry as a whole. Empty `actor` and `action` mean all.
    """
    c = t.audit.c
    statement = sa.select(t.audit).order_by(c.id.desc()).limit(limit + 1)
    if namespace:
        statement = statement.where(c.namespace == namespace)
    elif not reader.everywhere:
        statement = statement.where(c.namespace.in_(sorted(reader.namespaces)))
    if actor:
        statement = statement.where(c.actor == actor)
    if action:
        statement = statement.where(c.action == action)
    if since is not None:
        statement = statement.where(c.at_us >= records.to_us(since))
    if before:
        statement = statement.where(c.id < before)
    rows = connection.execute(statement).all()
    entries = [
        AuditEntry(row.id, records.from_us(row.at_us), row.actor, row.action, row.namespace, row.subject, row.detail)
        for row in rows[:limit]
    ]
    return entries, len(rows) > limit
