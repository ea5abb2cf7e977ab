"""Changes the catalog: what happens inside one write transaction. Knows nothing of blobs and validation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Table

from weft_registry import digest as digests
from weft_registry.api import Published
from weft_registry.catalog import records
from weft_registry.catalog import tables as t
from weft_registry.catalog.aliases import find_tag, move_alias
from weft_registry.errors import AlreadyExistsError, InvalidInputError, PreconditionError
from weft_registry.manifest import Manifest
from weft_registry.reference import LATEST, AdapterName

_METRIC_NAME, _METRIC_SPLIT = 128, 64
"""Longer names than the columns hold are in the manifest only."""
_BASE_ID = 255
"""As much of a base's name as the column holds."""


def insert_version(
    connection: Connection,
    adapter: AdapterName,
    manifest: Manifest,
    manifest_bytes: bytes,
    tags: Sequence[str],
    aliases: Sequence[str],
    request_id: str,
    content: str,
    actor: str,
    follow: bool = True,
) -> Published:
    """A publish by `actor`: version, files, metrics, tags, aliases, and the answer to the request, whose digest is
    `content`. Without `follow`, "latest" moves only if it is nowhere.

    Raises `AlreadyExistsError` for a tag that names another version, `PreconditionError` for a yanked version,
    `InvalidInputError` for a request id that was used for something else.
    """
    if request_id and (earlier := answered(connection, request_id, content)):
        return earlier
    digest, now = digests.of_bytes(manifest_bytes), records.now_us()
    adapter_id = records.find_adapter(connection, adapter)
    if adapter_id is None:
        names = {"namespace": adapter.namespace, "name": adapter.name, "created_at_us": now}
        adapter_id = _insert(connection, t.adapters, names)
    version_id = records.find_digest(connection, adapter_id, digest)
    existing = version_id is not None
    if version_id is None:
        row = {
            "adapter_id": adapter_id,
            "digest": digest,
            "manifest": manifest_bytes,
            "kind": manifest.kind,
            "base_weights_sha256": manifest.base.weights_sha256,
            "base_id": manifest.base.id[:_BASE_ID],
            "parent_digest": parent_of(manifest),
            "size_bytes": manifest.size_bytes,
            "published_at_us": now,
            "published_by": actor,
        }
        version_id = _insert(connection, t.versions, row)
        if metrics := metric_rows(version_id, manifest):
            connection.execute(t.version_metrics.insert(), metrics)
        connection.execute(
            t.version_files.insert(),
            [
                {"version_id": version_id, "path": file.path, "sha256": file.sha256, "size_bytes": file.size}
                for file in manifest.files
            ],
        )
    elif records.versions(connection, [version_id])[0].yanked:
        raise PreconditionError(
            f"{adapter}@{digest} was published and yanked: publish a new version instead (another `created` time is "
            "enough)",
            reason="YANKED",
            metadata={"digest": digest},
        )
    for tag in dict.fromkeys(tags):
        _tag(connection, adapter, adapter_id, tag, version_id)
    follows = follow or records.alias(connection, adapter_id, LATEST) is None
    for alias in dict.fromkeys((LATEST, *aliases) if follows else aliases):
        if find_tag(connection, adapter_id, alias) is not None:
            raise AlreadyExistsError(f"{adapter}:{alias} is a tag, which never moves: choose another alias")
        move_alias(connection, adapter_id, alias, version_id, actor)
    if request_id:
        connection.execute(
            t.publishes.insert().values(
                request_id=request_id.lower(),
                content_sha256=content,
                version_id=version_id,
                existing=existing,
                at_us=now,
            )
        )
    return Published(records.versions(connection, [version_id])[0], existing)


def answered(connection: Connection, request_id: str, content: str) -> Published | None:
    """What a request with this id was answered. Raises `InvalidInputError` if it asked for something else."""
    row = connection.execute(sa.select(t.publishes).where(t.publishes.c.request_id == request_id.lower())).one_or_none()
    if row is None:
        return None
    if row.content_sha256 != content:
        raise InvalidInputError(
            f"request_id {request_id} was used for another publish: make a new UUID for a new publish",
            reason="REQUEST_ID_REUSED",
        )
    return Published(records.versions(connection, [row.version_id])[0], row.existing)


def _tag(connection: Connection, adapter: AdapterName, adapter_id: int, tag: str, version_id: int) -> None:
    holder = find_tag(connection, adapter_id, tag)
    if holder == version_id:
        return
    if holder is not None:
        other = records.versions(connection, [holder])[0]
        raise AlreadyExistsError(
            f"{adapter}:{tag} already names {other.digest}, for ever: choose another tag",
            reason="TAG_EXISTS",
            metadata={"tag": tag, "digest": other.digest},
        )
    if records.alias(connection, adapter_id, tag) is not None:
        raise AlreadyExistsError(f"{adapter}:{tag} is an alias, which moves: choose another tag", reason="TAG_EXISTS")
    connection.execute(t.tags.insert().values(adapter_id=adapter_id, tag=tag, version_id=version_id))


def parent_of(manifest: Manifest) -> str:
    """The digest of the version that an adapter was trained on from; empty for none."""
    parent = manifest.provenance.get("parent_version")
    return parent if isinstance(parent, str) and digests.is_digest(parent) else ""


def metric_rows(version_id: int, manifest: Manifest) -> list[dict[str, Any]]:
    """The manifest's metrics that are finite numbers, as rows to search and sort by."""
    found = {}
    for metric in manifest.metrics:
        try:
            value = float(metric.value)
        except ValueError:
            continue
        if math.isfinite(value) and len(metric.name) <= _METRIC_NAME and len(metric.split) <= _METRIC_SPLIT:
            found[metric.name, metric.split] = value
    return [
        {"version_id": version_id, "name": name, "split": split, "value": value}
        for (name, split), value in found.items()
    ]


def _insert(connection: Connection, table: Table, row: Mapping[str, Any]) -> int:
    key = connection.execute(table.insert().values(row)).inserted_primary_key
    assert key is not None
    return int(key[0])
