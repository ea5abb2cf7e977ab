"""`weft list` of a registry in files, without loading a database library: that alone takes longer than the question.

Answers what `weft_registry.catalog.listing` answers, which a test holds it to, and nothing else: where anything is not
as it should be, it leaves the question to the registry, which knows what to say.
"""

from __future__ import annotations

import os
import sqlite3
from collections import defaultdict
from contextlib import closing
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from weft_registry.api import AdapterSummary, VersionSummary
from weft_registry.catalog.revisions import HEAD
from weft_registry.home import DATABASE_VARIABLE, Home
from weft_registry.reference import AdapterName, check_name

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COUNTS = "SELECT adapter_id, sum(NOT yanked) FROM versions GROUP BY adapter_id"
# `id + 0`: by way of the adapter's index, which has all these columns. The row itself has the manifest in front.
_LATEST = """
    SELECT v.adapter_id, v.id, v.digest, v.kind, v.base_id, v.base_weights_sha256, v.published_at_us, v.size_bytes,
           v.published_by, v.parent_digest
    FROM aliases l JOIN versions v ON v.adapter_id = l.adapter_id AND v.id + 0 = l.version_id
    WHERE l.alias = 'latest'"""
_LABELS = """
    SELECT t.version_id, t.{column} FROM aliases l JOIN {table} t ON t.version_id = l.version_id
    WHERE l.alias = 'latest' ORDER BY t.{column}"""
_ADAPTERS = "SELECT id, namespace, name FROM adapters {where} ORDER BY namespace, name"


def list_summaries(home: Home, namespace: str) -> list[AdapterSummary] | None:
    """All adapters (of a namespace, unless it is empty) in name order; None where the catalog is not a file of this
    Weft's tables. Raises `InvalidInputError` for what cannot be a namespace."""
    if namespace:
        check_name(namespace, "namespace")
    path = home.registry / "catalog.db"
    if os.environ.get(DATABASE_VARIABLE) or not path.is_file():
        return None
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, isolation_level=None)) as database:
            database.execute("BEGIN")
            if database.execute("SELECT version_num FROM alembic_version").fetchall() != [(HEAD,)]:
                return None
            return _summaries(database, namespace)
    except sqlite3.Error:
        return None  # Locked, damaged, older: the registry says which.


def _summaries(database: sqlite3.Connection, namespace: str) -> list[AdapterSummary]:
    counts: dict[int, int] = dict(database.execute(_COUNTS).fetchall())
    latest = {row[0]: row for row in database.execute(_LATEST).fetchall()}
    tags, aliases = (_labels(database, table, column) for table, column in (("tags", "tag"), ("aliases", "alias")))
    where, values = ("WHERE namespace = ?", (namespace,)) if namespace else ("", ())
    found = []
    for adapter_id, in_namespace, name in database.execute(_ADAPTERS.format(where=where), values).fetchall():
        if adapter_id not in counts:
            continue
        adapter, version = AdapterName(in_namespace, name), None
        if adapter_id in latest:
            _, i, digest, kind, base, weights, published_us, size_bytes, by, parent = latest[adapter_id]
            labels = (tuple(tags.get(i, ())), tuple(aliases.get(i, ())))
            published_at = _EPOCH + timedelta(microseconds=published_us)
            version = VersionSummary(
                adapter, digest, kind, base, weights, *labels, published_at, size_bytes, by, parent
            )
        found.append(AdapterSummary(adapter, counts[adapter_id], version))
    return found


def _labels(database: sqlite3.Connection, table: str, column: str) -> dict[int, list[str]]:
    labels: dict[int, list[str]] = defaultdict(list)
    for version_id, label in database.execute(_LABELS.format(table=table, column=column)).fetchall():
        labels[version_id].append(label)
    return labels
