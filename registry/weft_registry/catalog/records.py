"""Reads the catalog: rows in, the dataclasses of `weft_registry.api` out. Changes nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from weft_registry.api import Alias, Version
from weft_registry.catalog import tables as t
from weft_registry.errors import NotFoundError, PreconditionError
from weft_registry.names import nearest
from weft_registry.reference import LATEST, AdapterName, Reference

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MANY = 500
"""Ids to a query: SQLite takes a limited number of parameters."""


def now_us() -> int:
    """The time, as the catalog stores it."""
    return (datetime.now(UTC) - _EPOCH) // timedelta(microseconds=1)


def from_us(time_us: int) -> datetime:
    """The inverse of what is stored."""
    return _EPOCH + timedelta(microseconds=time_us)


def to_us(time: datetime) -> int:
    """A time (with its zone) as it is stored."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def find_adapter(connection: Connection, adapter: AdapterName) -> int | None:
    """The adapter's row id, if it is there."""
    a = t.adapters.c
    return connection.execute(
        sa.select(a.id).where(a.namespace == adapter.namespace, a.name == adapter.name)
    ).scalar_one_or_none()


def adapter_id(connection: Connection, adapter: AdapterName, readable: Collection[str] | None = ()) -> int:
    """The adapter's row id. Raises `NotFoundError` with the nearest names, of its own namespace and of those that are
    `readable` (None: of all)."""
    found = find_adapter(connection, adapter)
    if found is None:
        a = t.adapters.c
        statement = sa.select(a.namespace, a.name)
        if readable is not None:
            statement = statement.where(a.namespace.in_({adapter.namespace, *readable}))
        rows = connection.execute(statement)
        near = nearest(str(adapter), (f"{row.namespace}/{row.name}" for row in rows))
        raise NotFoundError(
            f"no adapter {adapter}{_hint(near)}; `weft list` shows all",
            reason="ADAPTER_NOT_FOUND",
            metadata={"adapter": str(adapter), "nearest": ",".join(near)},
        )
    return found


def find_label(connection: Connection, adapter: int, label: str) -> int | None:
    """The version id that a tag or an alias names. No word is both."""
    for table, column in ((t.tags, t.tags.c.tag), (t.aliases, t.aliases.c.alias)):
        found = connection.execute(
            sa.select(table.c.version_id).where(table.c.adapter_id == adapter, column == label)
        ).scalar_one_or_none()
        if found is not None:
            return int(found)
    return None


def find_digest(connection: Connection, adapter: int, digest: str) -> int | None:
    """The id of the adapter's version with this digest."""
    v = t.versions.c
    return connection.execute(sa.select(v.id).where(v.adapter_id == adapter, v.digest == digest)).scalar_one_or_none()


def find_prefix(connection: Connection, adapter: int, prefix: str) -> int | None:
    """The id of the adapter's version whose digest begins with `prefix`; None if there is none, or more than one."""
    v = t.versions.c
    # A range, for which the index serves: "g" comes after every hexadecimal digit.
    statement = sa.select(v.id).where(v.adapter_id == adapter, v.digest >= prefix, v.digest < prefix + "g").limit(2)
    found = list(connection.execute(statement).scalars())
    return found[0] if len(found) == 1 else None


def resolve(connection: Connection, reference: Reference, readable: Collection[str] | None = ()) -> Version:
    """The version that a reference names now. `readable`: see `adapter_id`.

    Raises `NotFoundError` (with the nearest names) for what is not there or was yanked, and `PreconditionError` where
    a label and a digest are both given and do not agree.
    """
    adapter = adapter_id(connection, reference.adapter, readable)
    version_id: int | None
    if reference.digest is not None:
        version_id = find_digest(connection, adapter, reference.digest)
        if version_id is None:
            raise NotFoundError(
                f"{reference.adapter} has no version {reference.digest}",
                reason="VERSION_NOT_FOUND",
                metadata={"adapter": str(reference.adapter), "digest": reference.digest},
            )
        if reference.label is not None and find_label(connection, adapter, reference.label) != version_id:
            raise PreconditionError(
                f"{reference.adapter}:{reference.label} does not name {reference.digest} (any more): leave the label "
                "or the digest out",
                reason="LABEL_MISMATCH",
                metadata={"label": reference.label, "digest": reference.digest},
            )
        return versions(connection, [version_id])[0]
    label = reference.label or LATEST
    version_id = find_label(connection, adapter, label)
    if version_id is None:
        raise _no_label(connection, reference.adapter, adapter, label)
    version = versions(connection, [version_id])[0]
    if version.yanked:
        reason = f" ({version.yank_reason})" if version.yank_reason else ""
        raise NotFoundError(
            f"{reference} was yanked{reason}; it stays readable as {reference.adapter}@{version.digest}",
            reason="YANKED",
            metadata={
                "adapter": str(reference.adapter),
                "digest": version.digest,
                "yank_reason": version.yank_reason,
            },
        )
    return version


def versions(connection: Connection, ids: Sequence[int]) -> list[Version]:
    """The versions with these row ids, in this order, with their tags and aliases."""
    tags: dict[int, list[str]] = defaultdict(list)
    aliases: dict[int, list[str]] = defaultdict(list)
    rows: dict[int, Any] = {}
    a, v = t.adapters.c, t.versions.c
    for start in range(0, len(ids), _MANY):
        some = ids[start : start + _MANY]
        for table, column, labels in ((t.tags, t.tags.c.tag, tags), (t.aliases, t.aliases.c.alias, aliases)):
            statement = sa.select(table.c.version_id, column).where(table.c.version_id.in_(some)).order_by(column)
            for version_id, label in connection.execute(statement):
                labels[version_id].append(label)
        statement = sa.select(t.versions, a.namespace, a.name).join(t.adapters).where(v.id.in_(some))
        rows.update({row.id: row for row in connection.execute(statement)})
    return [_version(rows[i], tags[i], aliases[i]) for i in ids]


@dataclass(frozen=True)
class LatestOf:
    """An adapter, and all that is known of its latest version. `AdapterSummary` is the same without manifests."""

    adapter: AdapterName
    version_count: int
    latest: Version | None


def in_name_order(namespace: str, after: str, readable: Collection[str] | None) -> sa.Select[Any]:
    """Row id, namespace and name of adapters in name order: of one namespace (empty: of all), those after the name
    `after` ("namespace/name" or empty), in the `readable` namespaces (None: in all)."""
    a = t.adapters.c
    statement = sa.select(a.id, a.namespace, a.name).order_by(a.namespace, a.name)
    if namespace:
        statement = statement.where(a.namespace == namespace)
    if readable is not None:
        statement = statement.where(a.namespace.in_(sorted(readable)))
    if after:
        last = AdapterName.parse(after)
        statement = statement.where(
            sa.or_(a.namespace > last.namespace, sa.and_(a.namespace == last.namespace, a.name > last.name))
        )
    return statement


def page_adapters(
    connection: Connection, namespace: str, after: str, limit: int | None, readable: Collection[str] | None = None
) -> list[LatestOf]:
    """At most `limit` adapters (None: all) in name order, those after the name `after` ("namespace/name" or empty), in
    the `readable` namespaces (None: in all)."""
    v = t.versions.c
    found = connection.execute(in_name_order(namespace, after, readable).limit(limit)).all()
    counts: dict[int, int] = {}
    latest: dict[int, int] = {}
    for start in range(0, len(found), _MANY):
        ids = [row.id for row in found[start : start + _MANY]]
        statement = (
            sa.select(v.adapter_id, sa.func.count())
            .where(v.adapter_id.in_(ids), v.yanked.is_(False))
            .group_by(v.adapter_id)
        )
        counts.update({row[0]: row[1] for row in connection.execute(statement)})
        statement = sa.select(t.aliases.c.adapter_id, t.aliases.c.version_id).where(
            t.aliases.c.adapter_id.in_(ids), t.aliases.c.alias == LATEST
        )
        latest.update({row[0]: row[1] for row in connection.execute(statement)})
    newest = dict(zip(latest, versions(connection, list(latest.values())), strict=True))
    return [LatestOf(AdapterName(row.namespace, row.name), counts.get(row.id, 0), newest.get(row.id)) for row in found]


@dataclass(frozen=True)
class VersionRow:
    """A version and the row it is in: the place from which a listing goes on."""

    id: int
    version: Version


def page_versions(
    connection: Connection,
    adapter: AdapterName,
    include_yanked: bool,
    before: int,
    limit: int,
    readable: Collection[str] | None = (),
) -> tuple[list[VersionRow], bool]:
    """At most `limit` versions, newest first, those published before row `before` (0: from the newest on). `readable`:
    see `adapter_id`.

    The second value says whether there are more. Raises `NotFoundError`.
    """
    v = t.versions.c
    adapter_row = adapter_id(connection, adapter, readable)
    statement = sa.select(v.id).where(v.adapter_id == adapter_row).order_by(v.id.desc())
    if not include_yanked:
        statement = statement.where(v.yanked.is_(False))
    if before:
        statement = statement.where(v.id < before)
    ids = list(connection.execute(statement.limit(limit + 1)).scalars())
    found = versions(connection, ids[:limit])
    return [VersionRow(i, version) for i, version in zip(ids, found, strict=False)], len(ids) > limit


def alias(connection: Connection, adapter: int, name: str) -> Alias | None:
    """Where an alias points now, if it exists."""
    c = t.aliases.c
    row = connection.execute(sa.select(t.aliases).where(c.adapter_id == adapter, c.alias == name)).one_or_none()
    if row is None:
        return None
    digests = digests_of(connection, (row.version_id, row.previous_version_id))
    return Alias(
        name, digests[row.version_id], row.etag, from_us(row.moved_at_us), digests.get(row.previous_version_id, "")
    )


def digests_of(connection: Connection, ids: Iterable[int | None]) -> dict[int | None, str]:
    """The digests of the versions with these row ids; a None is left out."""
    v = t.versions.c
    wanted = [i for i in ids if i is not None]
    return {row.id: row.digest for row in connection.execute(sa.select(v.id, v.digest).where(v.id.in_(wanted)))}


def _version(row: Any, tags: Iterable[str], aliases: Iterable[str]) -> Version:
    return Version(
        adapter=AdapterName(row.namespace, row.name),
        digest=row.digest,
        manifest_bytes=bytes(row.manifest),
        tags=tuple(tags),
        aliases=tuple(aliases),
        published_at=from_us(row.published_at_us),
        size_bytes=row.size_bytes,
        yanked=row.yanked,
        yank_reason=row.yank_reason,
        published_by=row.published_by,
        parent_digest=row.parent_digest,
    )


def _no_label(connection: Connection, name: AdapterName, adapter: int, label: str) -> NotFoundError:
    newest = _newest_of_all_yanked(connection, adapter)
    if newest is not None and label == LATEST:
        reason = f", the newest of them for this reason: {newest.yank_reason}" if newest.yank_reason else ""
        return NotFoundError(
            f"every version of {name} was yanked{reason}; `weft versions {name} --all` shows them: publish another, or "
            f"name the newest by its digest, {name}@{newest.digest}",
            reason="YANKED",
            metadata={"adapter": str(name), "digest": newest.digest, "yank_reason": newest.yank_reason},
        )
    known = [
        *connection.execute(sa.select(t.tags.c.tag).where(t.tags.c.adapter_id == adapter)).scalars(),
        *connection.execute(sa.select(t.aliases.c.alias).where(t.aliases.c.adapter_id == adapter)).scalars(),
    ]
    near = [f"{name}:{word}" for word in nearest(label, known)]
    shows = f"`weft versions {name}` shows all"
    if newest is not None:
        shows = f"every version of it was yanked, and `weft versions {name} --all` shows them"
    return NotFoundError(
        f"{name} has no tag or alias {label!r}{_hint(near)}; {shows}",
        reason="VERSION_NOT_FOUND",
        metadata={"adapter": str(name), "label": label, "nearest": ",".join(near)},
    )


def _newest_of_all_yanked(connection: Connection, adapter: int) -> Version | None:
    """The newest version of an adapter of which every version was yanked; None for any other adapter."""
    v = t.versions.c
    statement = sa.select(v.id).where(v.adapter_id == adapter).order_by(v.id.desc()).limit(1)
    if connection.execute(statement.where(v.yanked.is_(False))).first() is not None:
        return None
    ids = list(connection.execute(statement).scalars())
    return versions(connection, ids)[0] if ids else None


def _hint(near: Sequence[str]) -> str:
    return f"; nearest: {', '.join(near)}" if near else ""
