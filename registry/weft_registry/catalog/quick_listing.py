"""`weft list` of a registry in files, without loading a database library: that alone takes longer than the question.

Answers what `weft_registry.catalog.listing` answers, as far as a table shows it and in values that cost little to make,
which a test holds it to, and nothing else: where anything is not as it should be, it leaves the question to the
registry, which knows what to say.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from weft_registry.catalog.revisions import HEAD
from weft_registry.home import DATABASE_VARIABLE, Home

if TYPE_CHECKING:
    from weft_registry.api import AdapterSummary

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# All in one walk through an index that has all of it, adapter by adapter as they are stored, and sorted by name in the
# end: by name they lie all over the file. The index is named where SQLite would look into the rows themselves, which
# have manifests in front, and `CROSS` says that the walk comes first.
_LINES = """
    SELECT a.namespace || '/' || a.name, c.version_count, coalesce(v.kind, ''), coalesce(v.digest, ''),
           coalesce((SELECT group_concat(tag, ', ') FROM
                     (SELECT tag FROM tags WHERE version_id = l.version_id ORDER BY tag)), ''),
           coalesce(v.size_bytes, 0), coalesce(v.base_id, ''), coalesce(v.published_at_us, 0)
    FROM (SELECT adapter_id, sum(NOT yanked) AS version_count FROM versions INDEXED BY versions_shown
          {within} GROUP BY adapter_id) c
    CROSS JOIN adapters a ON a.id = c.adapter_id
    LEFT JOIN aliases l ON l.adapter_id = c.adapter_id AND l.alias = 'latest'
    LEFT JOIN versions v INDEXED BY versions_shown ON v.adapter_id = l.adapter_id AND v.id = l.version_id
    ORDER BY a.namespace, a.name"""
_WITHIN = "WHERE adapter_id IN (SELECT id FROM adapters WHERE namespace = ?)"


class Line(NamedTuple):
    """One adapter in a table."""

    adapter: str
    version_count: int
    """Of versions that are not yanked."""
    kind: str
    """Of the latest version, as all that follows; empty, as all that follows, when every version is yanked."""
    digest: str
    tags: str
    """In order, with ", " between them."""
    size_bytes: int
    base: str
    """Name or repository of the base model, at most 255 characters of it."""
    published_at_us: int
    """Microseconds since 1970, UTC."""


def list_lines(home: Home, namespace: str) -> list[Line] | None:
    """All adapters (of a namespace, unless it is empty) in name order; None where the catalog is not a file of this
    Weft's tables. Raises `InvalidInputError` for what cannot be a namespace."""
    if namespace:
        # Imported here: the question without one needs no grammar of names.
        from weft_registry.reference import check_name

        check_name(namespace, "namespace")
    path = home.registry / "catalog.db"
    if os.environ.get(DATABASE_VARIABLE) or not path.is_file():
        return None
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, isolation_level=None)) as database:
            database.execute("BEGIN")
            if database.execute("SELECT version_num FROM alembic_version").fetchall() != [(HEAD,)]:
                return None
            statement = _LINES.format(within=_WITHIN if namespace else "")
            rows = database.execute(statement, (namespace,) if namespace else ()).fetchall()
            return [Line(*row) for row in rows]
    except sqlite3.Error:
        return None  # Locked, damaged, older: the registry says which.


def line_of(summary: AdapterSummary) -> Line:
    """What a registry says of an adapter, as far as a table shows it."""
    adapter, count, latest = str(summary.adapter), summary.version_count, summary.latest
    if latest is None:
        return Line(adapter, count, "", "", "", 0, "", 0)
    published_at_us = (latest.published_at - _EPOCH) // timedelta(microseconds=1)
    tags = ", ".join(latest.tags)
    return Line(adapter, count, latest.kind, latest.digest, tags, latest.size_bytes, latest.base, published_at_us)
