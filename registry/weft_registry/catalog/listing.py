"""Lists adapters without reading a manifest: ten thousand of them in the time of one blink."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from weft_registry.api import AdapterSummary, VersionSummary
from weft_registry.catalog import records
from weft_registry.catalog import tables as t
from weft_registry.reference import LATEST, AdapterName


def page_summaries(
    connection: Connection, namespace: str, after: str, limit: int | None, readable: Collection[str] | None
) -> list[AdapterSummary]:
    """At most `limit` adapters (None: all) that have versions, in name order, those after the name `after`
    ("namespace/name" or empty), in the `readable` namespaces (None: in all)."""
    a, v, al = t.adapters.c, t.versions.c, t.aliases.c
    page = records.in_name_order(namespace, after, readable)
    whole = limit is None and not namespace
    if not whole:
        page = page.where(_has_versions()).limit(limit)
    within = page.with_only_columns(a.id).scalar_subquery()

    def of_page(column: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        # Of everything, everything: SQLite would look up each of the ten thousand.
        return sa.true() if whole else column.in_(within)

    counted = (
        sa.select(v.adapter_id, sa.func.sum(sa.case((v.yanked, 0), else_=1)))
        .where(of_page(v.adapter_id))
        .group_by(v.adapter_id)
    )
    counts: dict[int, int] = dict(connection.execute(counted).all())
    # `id + 0`: by way of the adapter's index, which has all these columns. The row itself has the manifest in front.
    newest = sa.and_(al.adapter_id == v.adapter_id, al.version_id == v.id + 0, al.alias == LATEST)
    latest = (
        sa.select(
            v.adapter_id,
            v.id,
            v.digest,
            v.kind,
            v.base_id,
            v.base_weights_sha256,
            v.published_at_us,
            v.size_bytes,
            v.published_by,
            v.parent_digest,
        )
        .select_from(t.aliases.join(t.versions, newest))
        .where(of_page(al.adapter_id))
    )
    rows = {row[0]: row for row in connection.execute(latest).all()}
    tags = _labels(connection, t.tags, t.tags.c.tag, of_page)
    aliases = _labels(connection, t.aliases, al.alias, of_page)
    found = []
    for adapter_id, in_namespace, name in connection.execute(page).all():
        count = counts.get(adapter_id)
        if count is None:
            continue
        adapter, version = AdapterName(in_namespace, name), None
        if adapter_id in rows:
            _, i, digest, kind, base, weights, published_us, size_bytes, by, parent = rows[adapter_id]
            labels = (tuple(tags.get(i, ())), tuple(aliases.get(i, ())))
            version = VersionSummary(
                adapter, digest, kind, base, weights, *labels, records.from_us(published_us), size_bytes, by, parent
            )
        found.append(AdapterSummary(adapter, int(count), version))
    return found


def _has_versions() -> sa.ColumnElement[bool]:
    """Leaves out what was only begun over the Hub's protocol, and what was deleted."""
    return sa.select(t.versions.c.adapter_id).where(t.versions.c.adapter_id == t.adapters.c.id).exists()


def _labels(connection: Connection, table: sa.Table, column: Any, of_page: Any) -> dict[int, list[str]]:
    """The labels of latest versions, in order."""
    al = t.aliases.alias()
    statement = (
        sa.select(table.c.version_id, column)
        .join(al, al.c.version_id == table.c.version_id)
        .where(al.c.alias == LATEST, of_page(table.c.adapter_id))
        .order_by(column)
    )
    labels: dict[int, list[str]] = defaultdict(list)
    for version_id, label in connection.execute(statement).all():
        labels[version_id].append(label)
    return labels
