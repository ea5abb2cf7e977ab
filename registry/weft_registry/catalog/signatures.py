"""Signatures in the catalog: kept beside versions, and never part of them. Checks none."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy import Connection

from weft_registry.api import Signature
from weft_registry.catalog import records
from weft_registry.catalog import tables as t


def of_version(connection: Connection, version_id: int) -> list[Signature]:
    """The signatures of a version, the oldest first."""
    statement = sa.select(t.signatures).where(t.signatures.c.version_id == version_id).order_by(t.signatures.c.id)
    return [
        Signature(row.key_sha256, bytes(row.bundle), records.from_us(row.added_at_us), row.added_by)
        for row in connection.execute(statement)
    ]


def put(connection: Connection, version_id: int, key_digest: str, bundle: bytes, actor: str) -> Signature:
    """Keeps a signature; it takes the place of an earlier one by the same key."""
    added = records.now_us()
    s = t.signatures.c
    connection.execute(t.signatures.delete().where(s.version_id == version_id, s.key_sha256 == key_digest))
    connection.execute(
        t.signatures.insert().values(
            version_id=version_id, key_sha256=key_digest, bundle=bundle, added_at_us=added, added_by=actor
        )
    )
    return Signature(key_digest, bundle, records.from_us(added), actor)


def replace(connection: Connection, version_id: int, there: Sequence[Signature]) -> None:
    """Makes the signatures of a version those of another registry, who added them and when included."""
    connection.execute(t.signatures.delete().where(t.signatures.c.version_id == version_id))
    for one in there:
        connection.execute(
            t.signatures.insert().values(
                version_id=version_id,
                key_sha256=one.key_digest,
                bundle=one.bundle,
                added_at_us=records.to_us(one.added_at),
                added_by=one.added_by,
            )
        )
