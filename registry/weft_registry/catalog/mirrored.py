"""What a mirror's catalog remembers of another registry: versions as they are there, and what labels named last.

Nothing here is validated again: the other registry did that, and digests say that it is the same. What it has taken
back (a yank, a removed label) is taken back here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from weft_registry.api import Version
from weft_registry.catalog import aliases, audit, changes, records
from weft_registry.catalog import tables as t
from weft_registry.errors import PreconditionError
from weft_registry.manifest import Manifest
from weft_registry.reference import AdapterName

ACTOR = "upstream"
"""Who moves aliases here."""
_BECAME = "mirror"
_UPSTREAM = "mirror_of"


def upstream_of(connection: Connection) -> str | None:
    """The registry that this catalog is a mirror of, as it was named last; None for what is no mirror."""
    found = connection.execute(sa.select(t.settings.c.value).where(t.settings.c.key == _UPSTREAM))
    return found.scalar_one_or_none()


def is_mirror(connection: Connection) -> bool:
    """Whether this catalog is that of a mirror: not everything that it lists need be held here."""
    return upstream_of(connection) is not None


def refuse_to_publish(connection: Connection, where: str) -> None:
    """Raises `PreconditionError` (`READ_ONLY_MIRROR`) if this catalog, which is in `where`, is a mirror's: what was
    published in it would be mixed up with what the upstream calls by the same name."""
    upstream = upstream_of(connection)
    if upstream is not None:
        raise PreconditionError(
            f"the registry in {where} is a mirror of {upstream}, and is only read: publish there (--registry "
            f"{upstream}), or here with another WEFT_HOME",
            reason="READ_ONLY_MIRROR",
            metadata={"upstream": upstream},
        )


def has_versions(connection: Connection) -> bool:
    """Whether there are versions here at all."""
    return connection.execute(sa.select(t.versions.c.id).limit(1)).first() is not None


def become_mirror(connection: Connection, upstream: str, actor: str) -> None:
    """Writes down which registry this one mirrors from now on; in the log that only grows, too."""
    connection.execute(t.settings.delete().where(t.settings.c.key == _UPSTREAM))
    connection.execute(t.settings.insert().values(key=_UPSTREAM, value=upstream))
    audit.record(connection, actor, _BECAME, "", upstream)


def blob_size(connection: Connection, digest: str) -> int | None:
    """The size of a blob that some version has; None for one that none has."""
    f = t.version_files.c
    return connection.execute(sa.select(f.size_bytes).where(f.sha256 == digest).limit(1)).scalar_one_or_none()


def knows(connection: Connection, version: Version) -> bool:
    """Whether everything that `version` says is here already. Reads only."""
    adapter = records.find_adapter(connection, version.adapter)
    version_id = None if adapter is None else records.find_digest(connection, adapter, version.digest)
    if version_id is None:
        return False
    (here,) = records.versions(connection, [version_id])
    return (here.yanked, here.yank_reason, set(here.tags), set(here.aliases)) == (
        version.yanked,
        version.yank_reason,
        set(version.tags),
        set(version.aliases),
    )


def remember(connection: Connection, version: Version, manifest: Manifest) -> list[str]:
    """Writes down a version as it is there, with every tag and alias that names it there.

    Answers the labels that it has here and not there: they have moved to another version, or are gone.
    """
    adapter = records.find_adapter(connection, version.adapter)
    if adapter is None:
        names = {"namespace": version.adapter.namespace, "name": version.adapter.name}
        adapter = _insert(connection, t.adapters, {**names, "created_at_us": records.now_us()})
    version_id = records.find_digest(connection, adapter, version.digest)
    yank = {"yanked": version.yanked, "yank_reason": version.yank_reason}
    if version_id is None:
        row = {
            "adapter_id": adapter,
            "digest": version.digest,
            "manifest": version.manifest_bytes,
            "kind": manifest.kind,
            "base_weights_sha256": manifest.base.weights_sha256,
            "parent_digest": changes.parent_of(manifest),
            "size_bytes": manifest.size_bytes,
            "published_at_us": records.to_us(version.published_at),
            "published_by": version.published_by,
        }
        version_id = _insert(connection, t.versions, {**row, **yank})
        if metrics := changes.metric_rows(version_id, manifest):
            connection.execute(t.version_metrics.insert(), metrics)
        files = [
            {"version_id": version_id, "path": file.path, "sha256": file.sha256, "size_bytes": file.size}
            for file in manifest.files
        ]
        connection.execute(t.version_files.insert(), files)
    else:
        connection.execute(t.versions.update().where(t.versions.c.id == version_id).values(**yank))
    for tag in version.tags:
        if aliases.find_tag(connection, adapter, tag) != version_id:
            _drop(connection, adapter, tag)
            connection.execute(t.tags.insert().values(adapter_id=adapter, tag=tag, version_id=version_id))
    for alias in version.aliases:
        _drop_tag(connection, adapter, alias)
        aliases.move_alias(connection, adapter, alias, version_id, ACTOR)
    (here,) = records.versions(connection, [version_id])
    return sorted({*here.tags, *here.aliases} - {*version.tags, *version.aliases})


def forget_label(connection: Connection, adapter: AdapterName, label: str) -> None:
    """The label names nothing there any more; the version that it named stays, by digest."""
    adapter_id = records.find_adapter(connection, adapter)
    if adapter_id is not None:
        _drop(connection, adapter_id, label)


def forget_other_labels(connection: Connection, adapter: AdapterName, there: Sequence[Version]) -> None:
    """Takes away the labels that none of the adapter's versions has there."""
    adapter_id = records.find_adapter(connection, adapter)
    if adapter_id is None:
        return
    kept = {label for version in there for label in (*version.tags, *version.aliases)}
    for table, column in ((t.tags, t.tags.c.tag), (t.aliases, t.aliases.c.alias)):
        here = connection.execute(sa.select(column).where(table.c.adapter_id == adapter_id)).scalars()
        for label in set(here) - kept:
            _drop(connection, adapter_id, label)


def known_aliases(connection: Connection) -> list[tuple[AdapterName, str]]:
    """Every alias here."""
    a = t.adapters.c
    statement = sa.select(a.namespace, a.name, t.aliases.c.alias).join(t.adapters).order_by(a.namespace, a.name)
    return [(AdapterName(row.namespace, row.name), row.alias) for row in connection.execute(statement)]


def page_versions(
    connection: Connection, adapter_id: int, include_yanked: bool, before: int, limit: int
) -> tuple[list[records.VersionRow], bool]:
    """As `records.page_versions`, in the order in which they were published there: rows are in that of arrival."""
    v = t.versions.c
    statement = sa.select(v.id).where(v.adapter_id == adapter_id).order_by(v.published_at_us.desc(), v.id.desc())
    if not include_yanked:
        statement = statement.where(v.yanked.is_(False))
    if before:
        at = connection.execute(sa.select(v.published_at_us).where(v.id == before)).scalar_one_or_none()
        if at is None:
            return [], False
        statement = statement.where(sa.or_(v.published_at_us < at, sa.and_(v.published_at_us == at, v.id < before)))
    ids = list(connection.execute(statement.limit(limit + 1)).scalars())
    found = records.versions(connection, ids[:limit])
    return [records.VersionRow(i, one) for i, one in zip(ids, found, strict=False)], len(ids) > limit


def _drop(connection: Connection, adapter_id: int, label: str) -> None:
    _drop_tag(connection, adapter_id, label)
    aliases.move_alias(connection, adapter_id, label, None, ACTOR)


def _drop_tag(connection: Connection, adapter_id: int, tag: str) -> None:
    c = t.tags.c
    connection.execute(t.tags.delete().where(c.adapter_id == adapter_id, c.tag == tag))


def _insert(connection: Connection, table: sa.Table, row: dict[str, Any]) -> int:
    key = connection.execute(table.insert().values(row)).inserted_primary_key
    assert key is not None
    return int(key[0])
