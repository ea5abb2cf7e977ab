"""Finds versions by what is in their manifests, in SQL and page by page. Reads no manifest to decide.

A page goes on after the last row of the one before it, wherever that row would be now: publishing meanwhile neither
repeats nor hides what was there.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from weft_registry import conditions
from weft_registry import digest as digests
from weft_registry.api import Version, VersionQuery
from weft_registry.catalog import records
from weft_registry.catalog import tables as t
from weft_registry.errors import InvalidInputError
from weft_registry.reference import LATEST, check_label, check_name

MAX_CONDITIONS = 16
_MOST = 1 << 63
_LONGEST = 300
_METRIC = "metric:"
_FINGERPRINT = re.compile(r"(sha256:)?[0-9a-f]{1,64}")
_SHORTEST_BARE = 8
"""Fewer digits than these, without "sha256:" before them, are a name and no fingerprint."""


@dataclass(frozen=True)
class Found:
    """A version, and the token with which a search goes on after it."""

    version: Version
    token: str


@dataclass(frozen=True)
class _Order:
    """One column that results are sorted by."""

    column: sa.ColumnElement[Any]
    type: type
    ascending: bool


def search(
    connection: Connection,
    query: VersionQuery,
    readable: Collection[str] | None,
    base_weights: str,
    page_token: str,
    limit: int,
) -> tuple[list[Found], bool]:
    """At most `limit` versions that are not yanked, in the namespaces `readable` (None: in all), and whether there are
    more. `base_weights` is the fingerprint of the stored base called `query.base`, if there is one.

    Raises `InvalidInputError` for a query or a page token that is none.
    """
    for field in ("kind", "base", "order_by"):
        _check_text(getattr(query, field), field)
    v, a = t.versions.c, t.adapters.c
    statement: sa.Select[Any] = sa.select(v.id).join(t.adapters, a.id == v.adapter_id).where(v.yanked.is_(False))
    statement = _within(statement, query.namespace, readable)
    if not query.all_versions:
        al = t.aliases.c
        # `+ 0`: by way of the adapter's index, which has all that is asked here. The row itself has the manifest in
        # front of most of it.
        newest = sa.and_(al.adapter_id == v.adapter_id, al.version_id == v.id + 0, al.alias == LATEST)
        statement = statement.join(t.aliases, newest)
    for clause in _filters(query, base_weights):
        statement = statement.where(clause)
    statement, orders = _ordered(statement, query.order_by)
    what = digests.of_bytes(repr(query).encode())[7:23]
    if page_token:
        statement = statement.where(_after(orders, _read_token(page_token, what, orders)))
    keys = [order.column.label(f"key_{i}") for i, order in enumerate(orders)]
    by = [order.column if order.ascending else order.column.desc() for order in orders]
    rows = connection.execute(statement.add_columns(*keys).order_by(*by).limit(limit + 1)).all()
    versions = records.versions(connection, [row[0] for row in rows[:limit]])
    found = [Found(version, _token(what, row[1:])) for version, row in zip(versions, rows, strict=False)]
    return found, len(rows) > limit


def _check_text(text: str, field: str) -> None:
    # PostgreSQL has no text with a zero byte in it.
    if len(text) > _LONGEST or not text.isprintable():
        raise InvalidInputError(f"{field}: {text[:100]!r}; at most {_LONGEST} printable characters")


def _within(statement: sa.Select[Any], namespace: str, readable: Collection[str] | None) -> sa.Select[Any]:
    a = t.adapters.c
    if namespace:
        statement = statement.where(a.namespace == check_name(namespace, "namespace"))
    return statement if readable is None else statement.where(a.namespace.in_(sorted(readable)))


def _filters(query: VersionQuery, base_weights: str) -> list[sa.ColumnElement[bool]]:
    v = t.versions.c
    found: list[sa.ColumnElement[bool]] = []
    if query.kind:
        found.append(v.kind == query.kind)
    if query.base:
        found.append(_base(query.base, base_weights))
    if digests.is_digest(query.label):
        found.append(v.digest == query.label)
    elif query.label:
        check_label(query.label)
        named = [
            sa.select(table.c.version_id).where(column == query.label)
            for table, column in ((t.tags, t.tags.c.tag), (t.aliases, t.aliases.c.alias))
        ]
        found.append(sa.or_(*(v.id.in_(names) for names in named)))
    if query.parent_digest:
        found.append(v.parent_digest == digests.check(query.parent_digest, "parent_digest"))
    if query.published_after is not None:
        found.append(v.published_at_us > records.to_us(query.published_after))
    if query.published_before is not None:
        found.append(v.published_at_us < records.to_us(query.published_before))
    if len(query.conditions) > MAX_CONDITIONS:
        raise InvalidInputError(f"conditions: {len(query.conditions)}; at most {MAX_CONDITIONS}")
    for text in query.conditions:
        for clause in conditions.parse(text):
            found += _measured(clause)
    return found


def _base(base: str, weights: str) -> sa.ColumnElement[bool]:
    v = t.versions.c
    if base.startswith("sha256:"):
        if not _FINGERPRINT.fullmatch(base):
            raise InvalidInputError(f"base: {base[:100]!r} is no fingerprint: sha256:<up to 64 lower-case hex digits>")
        return v.base_weights_sha256.startswith(base, autoescape=True)
    named = [v.base_id == base[:255], v.base_id.endswith("/" + base[:250], autoescape=True)]
    if weights:
        named.append(v.base_weights_sha256 == weights)
    if len(base) >= _SHORTEST_BARE and _FINGERPRINT.fullmatch(base):
        named.append(v.base_weights_sha256.startswith(f"sha256:{base}", autoescape=True))
    return sa.or_(*named)


def _measured(clause: conditions.Clause) -> list[sa.ColumnElement[bool]]:
    """The metric is there, and the comparison holds wherever it was measured."""
    m, number = t.version_metrics.c, float(clause.number)
    if not math.isfinite(number):
        raise InvalidInputError(f"condition: {clause.number} is larger than any figure that is searched by")
    holds = conditions.OPERATORS[clause.op](m.value, number)
    measured = sa.select(m.version_id).where(m.name == clause.name)
    # `+ 0`: as in `search`, so that each of what may be half the registry is looked up in an index.
    version = t.versions.c.id + 0
    return [version.in_(measured.where(holds)), version.not_in(measured.where(sa.not_(holds)))]


def _ordered(statement: sa.Select[Any], order_by: str) -> tuple[sa.Select[Any], list[_Order]]:
    v, a = t.versions.c, t.adapters.c
    what = (order_by or "name").removeprefix("-")
    ascending = not order_by.startswith("-")
    if what == "name":
        # The newest version of each name first.
        return statement, [
            _Order(a.namespace, str, ascending),
            _Order(a.name, str, ascending),
            _Order(v.id, int, not ascending),
        ]
    last = _Order(v.id, int, ascending)
    if what == "published":
        return statement, [_Order(v.published_at_us, int, ascending), last]
    if what == "size":
        return statement, [_Order(v.size_bytes, int, ascending), last]
    name = what.removeprefix(_METRIC)
    if not what.startswith(_METRIC) or not name or len(name) > 128:
        raise InvalidInputError(
            f"order_by: {order_by[:100]!r}; name, published, size or metric:NAME, with '-' in front to turn it around"
        )
    m = t.version_metrics.c
    measured = (
        sa.select(m.version_id, sa.func.min(m.value).label("value"))
        .where(m.name == name)
        .group_by(m.version_id)
        .subquery()
    )
    joined = statement.join(measured, measured.c.version_id == v.id + 0)
    return joined, [_Order(measured.c.value, float, ascending), last]


def _after(orders: Sequence[_Order], keys: Sequence[Any]) -> sa.ColumnElement[bool]:
    """Rows that come after the one with these keys."""
    later: list[sa.ColumnElement[bool]] = []
    for i, (order, key) in enumerate(zip(orders, keys, strict=True)):
        same = [before.column == value for before, value in zip(orders[:i], keys, strict=False)]
        later.append(sa.and_(*same, order.column > key if order.ascending else order.column < key))
    return sa.or_(*later)


def _token(what: str, keys: Sequence[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps([what, *keys]).encode()).decode()


def _read_token(token: str, what: str, orders: Sequence[_Order]) -> list[Any]:
    refused = InvalidInputError(f"page_token: {token[:80]!r} is not one that this registry gave for this search")
    try:
        found = json.loads(base64.b64decode(token.encode(), altchars=b"-_", validate=True))
    except (ValueError, RecursionError):
        raise refused from None
    if not isinstance(found, list) or len(found) != len(orders) + 1 or found[0] != what:
        raise refused
    for key, order in zip(found[1:], orders, strict=True):
        if type(key) is not order.type or (isinstance(key, int | float) and not -_MOST < key < _MOST):
            raise refused
    return found[1:]
