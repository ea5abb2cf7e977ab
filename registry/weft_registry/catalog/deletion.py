"""Removes a version for ever: its row, and what hangs on it. Its digest stays in histories and in the audit log; its
bytes go with the next collection, unless another version has them."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from weft_registry.api import Deleted
from weft_registry.catalog import aliases, audit, records
from weft_registry.catalog import tables as t
from weft_registry.errors import PreconditionError
from weft_registry.kinds import KIND_SCHEMAS
from weft_registry.kinds.schema import CompositeSchema
from weft_registry.manifest import Manifest
from weft_registry.parts import parts_of
from weft_registry.principal import Principal, Scope
from weft_registry.reference import LATEST, AdapterName, Reference

_SHOWN = 5


def delete_version(connection: Connection, principal: Principal, reference: Reference) -> Deleted:
    """Deletes the version that a reference names. Errors as for `DeleteVersion` in registry.proto."""
    version = records.resolve(connection, reference)
    adapter = version.adapter
    aliases.check_unnamed(adapter, version, "deleted")
    _check_no_whole(connection, principal, adapter, version.digest)
    adapter_id = records.adapter_id(connection, adapter)
    version_id = records.find_digest(connection, adapter_id, version.digest)
    assert version_id is not None, "a version that was just resolved"
    freed = _freed_bytes(connection, version_id)
    if LATEST in version.aliases:
        aliases.retreat_latest(connection, adapter_id, version_id, principal.name)
    al = t.aliases.c
    connection.execute(t.aliases.update().where(al.previous_version_id == version_id).values(previous_version_id=None))
    for table in (t.version_files, t.version_metrics, t.tags, t.publishes, t.signatures):
        connection.execute(table.delete().where(table.c.version_id == version_id))
    connection.execute(t.versions.delete().where(t.versions.c.id == version_id))
    audit.record(
        connection,
        principal.name,
        "delete",
        adapter.namespace,
        f"{adapter}@{version.digest}",
        {"digest": version.digest, "tags": list(version.tags), "freed_bytes": freed},
    )
    return Deleted(version.digest, freed)


@dataclass(frozen=True)
class _Whole:
    """A version that is made over others."""

    adapter: AdapterName
    digest: str


def _check_no_whole(connection: Connection, principal: Principal, adapter: AdapterName, digest: str) -> None:
    """Raises `PreconditionError` naming the versions that this one is a part of."""
    composite = [name for name, schema in KIND_SCHEMAS.items() if isinstance(schema, CompositeSchema)]
    a, v = t.adapters.c, t.versions.c
    statement = sa.select(a.namespace, a.name, v.digest, v.manifest).join(t.adapters).where(v.kind.in_(composite))
    part = Reference(adapter, None, digest)
    wholes = [
        _Whole(AdapterName(row.namespace, row.name), row.digest)
        for row in connection.execute(statement)
        # Parsing takes milliseconds; a manifest that has not the digest in it has not the part.
        if digest.encode() in bytes(row.manifest) and part in parts_of(Manifest.parse(bytes(row.manifest)))
    ]
    if not wholes:
        return
    # What one may not read does not exist, except that it is in the way.
    seen = [f"{whole.adapter}@{whole.digest}" for whole in wholes if principal.may(Scope.READ, whole.adapter.namespace)]
    shown = ", ".join(seen[:_SHOWN]) + (f" and {len(seen) - _SHOWN} more" if len(seen) > _SHOWN else "")
    raise PreconditionError(
        f"{adapter}@{digest} cannot be deleted: it is a part of {shown or 'what another namespace published'}; delete "
        "that first, or yank this one instead",
        reason="PART_OF_ANOTHER",
        metadata={"digest": digest, "wholes": ",".join(seen[:_SHOWN])},
    )


def _freed_bytes(connection: Connection, version_id: int) -> int:
    """The sizes of the blobs that no other version and no branch has."""
    f = t.version_files.c
    other = t.version_files.alias()
    elsewhere = sa.select(other.c.sha256).where(other.c.sha256 == f.sha256, other.c.version_id != version_id)
    staged = sa.select(t.branch_files.c.sha256).where(t.branch_files.c.sha256 == f.sha256)
    own = (
        sa.select(f.sha256, sa.func.max(f.size_bytes).label("size_bytes"))
        .where(f.version_id == version_id, ~elsewhere.exists(), ~staged.exists())
        .group_by(f.sha256)
        .subquery()
    )
    return int(connection.execute(sa.select(sa.func.coalesce(sa.func.sum(own.c.size_bytes), 0))).scalar_one())
