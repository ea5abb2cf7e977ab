"""Which blobs must stay: those of versions and of branches, and those that somebody holds a lease on.

What a mirror with a bound wrote down to hold (`held_blobs`) need not stay for that.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy import Connection

from weft_registry.catalog import leases
from weft_registry.catalog import tables as t

AT_ONCE = 500
"""Digests to a query: SQLite takes a limited number of parameters."""
_FILES = (t.version_files, t.branch_files)


def needed(connection: Connection, digests: Sequence[str]) -> set[str]:
    """Those of `digests`, at most `AT_ONCE`, that must stay."""
    assert len(digests) <= AT_ONCE, len(digests)
    found = leases.held(connection, digests)
    for files in _FILES:
        statement = sa.select(files.c.sha256).where(files.c.sha256.in_(digests)).distinct()
        found.update(connection.execute(statement).scalars())
    return found


def referenced() -> sa.Select[tuple[str, int]]:
    """Selects `sha256` and `size_bytes` of every blob of a version or a branch, each once, by digest."""
    every = sa.union_all(*(sa.select(files.c.sha256, files.c.size_bytes) for files in _FILES)).subquery()
    size = sa.func.max(every.c.size_bytes).label("size_bytes")
    return sa.select(every.c.sha256, size).group_by(every.c.sha256).order_by(every.c.sha256)
