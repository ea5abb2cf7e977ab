"""Leases on blobs: bytes that a namespace has just shown to hold, and will publish soon.

A lease keeps garbage collection away, and lets the namespace that showed the bytes use them without showing them again.
What reads everything may lease for `ANYBODY`: that keeps the bytes, and shows nothing to any namespace.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import sqlalchemy as sa
from sqlalchemy import Connection

from weft_registry.catalog import records
from weft_registry.catalog import tables as t

LEASE_S = 3600.0
ANYBODY = "*"
"""In place of a namespace: whose lease it is does not matter, and it proves nothing to anybody."""
_MANY = 500
"""Digests to a statement: SQLite takes a limited number of parameters."""


def take(connection: Connection, digests: Iterable[str], namespace: str, lease_s: float = LEASE_S) -> None:
    """Gives `namespace` a lease on each blob from now on, longer than it had or as long. In a write transaction."""
    wanted = list(dict.fromkeys(digests))
    until = records.now_us() + int(lease_s * 1e6)
    c = t.blob_leases.c
    for start in range(0, len(wanted), _MANY):
        some = wanted[start : start + _MANY]
        mine = sa.and_(c.namespace == namespace, c.sha256.in_(some))
        known = set(connection.execute(sa.select(c.sha256).where(mine)).scalars())
        connection.execute(t.blob_leases.update().where(mine, c.until_us < until).values(until_us=until))
        if new := [digest for digest in some if digest not in known]:
            connection.execute(
                t.blob_leases.insert(),
                [{"sha256": digest, "namespace": namespace, "until_us": until} for digest in new],
            )


def held(
    connection: Connection, digests: Sequence[str], namespaces: Iterable[str] | None = None, for_s: float = 0.0
) -> set[str]:
    """Those of `digests` that are leased for `for_s` seconds more at least, to one of `namespaces` (None: to whomever,
    which is what garbage collection asks)."""
    c, found = t.blob_leases.c, set[str]()
    until = records.now_us() + int(for_s * 1e6)
    holders = None if namespaces is None else list(namespaces)
    for start in range(0, len(digests), _MANY):
        statement = sa.select(c.sha256).where(c.sha256.in_(digests[start : start + _MANY]), c.until_us > until)
        if holders is not None:
            statement = statement.where(c.namespace.in_(holders))
        found.update(connection.execute(statement).scalars())
    return found


def expire(connection: Connection) -> int:
    """Removes the leases that have ended, and returns how many. In a write transaction."""
    return connection.execute(t.blob_leases.delete().where(t.blob_leases.c.until_us <= records.now_us())).rowcount
