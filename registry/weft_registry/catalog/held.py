"""What a mirror with a bound holds, and when each blob was last read: what decides which goes first.

The rows follow the store. They keep no blob from anything, are counted anew now and then, and a registry that is no
mirror, or has no bound, has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from weft_registry.catalog import records
from weft_registry.catalog import tables as t

AT_ONCE = 500
"""Digests to a statement: SQLite takes a limited number of parameters."""


@dataclass(frozen=True)
class Held:
    """A blob that is held. `read_at_us`: when it was read last, or came."""

    digest: str
    size_bytes: int
    read_at_us: int


def total_bytes(connection: Connection) -> int:
    """What all of them have together, those that are just being stored included."""
    return int(connection.execute(sa.select(sa.func.coalesce(sa.func.sum(t.held_blobs.c.size_bytes), 0))).scalar_one())


def lacking(connection: Connection, blobs: Sequence[Held]) -> list[Held]:
    """Those of `blobs`, at most `AT_ONCE`, that are not written down."""
    assert len(blobs) <= AT_ONCE, len(blobs)
    c = t.held_blobs.c
    digests = [blob.digest for blob in blobs]
    known = set(connection.execute(sa.select(c.sha256).where(c.sha256.in_(digests))).scalars())
    return [blob for blob in blobs if blob.digest not in known]


def enter(connection: Connection, blobs: Sequence[Held]) -> None:
    """Writes down those of `blobs`, at most `AT_ONCE`, that are not there. In a write transaction."""
    new = lacking(connection, blobs)
    if new:
        connection.execute(
            t.held_blobs.insert(),
            [{"sha256": blob.digest, "size_bytes": blob.size_bytes, "read_at_us": blob.read_at_us} for blob in new],
        )


def note(connection: Connection, reads: Mapping[str, int]) -> None:
    """Blobs were read at these times. Those that are not written down stay so. In a write transaction."""
    if reads:
        c = t.held_blobs.c
        statement = t.held_blobs.update().where(c.sha256 == sa.bindparam("digest"), c.read_at_us < sa.bindparam("at"))
        connection.execute(
            statement.values(read_at_us=sa.bindparam("at")),
            [{"digest": digest, "at": at_us} for digest, at_us in sorted(reads.items())],
        )


def forget(connection: Connection, digests: Sequence[str]) -> None:
    """These blobs are held no more. In a write transaction."""
    for start in range(0, len(digests), AT_ONCE):
        some = digests[start : start + AT_ONCE]
        connection.execute(t.held_blobs.delete().where(t.held_blobs.c.sha256.in_(some)))


def page(connection: Connection, after: str, read_before_us: int) -> list[str]:
    """Some of the blobs that were not read since, by digest, after the digest `after`; none at the end."""
    c = t.held_blobs.c
    statement = sa.select(c.sha256).where(c.sha256 > after, c.read_at_us < read_before_us)
    return list(connection.execute(statement.order_by(c.sha256).limit(AT_ONCE)).scalars())


def least_recently_read(connection: Connection, after: Held | None) -> list[Held]:
    """Some of the blobs that can be brought again, in the order in which they go, after `after`; none at the end.

    That is what a version here has, since only that is asked for upstream, and neither a branch nor a lease, left from
    before this was a mirror: the upstream may drop what these still need.
    """
    c = t.held_blobs.c
    leased = sa.exists().where(t.blob_leases.c.sha256 == c.sha256, t.blob_leases.c.until_us > records.now_us())
    statement = sa.select(c.sha256, c.size_bytes, c.read_at_us).where(
        sa.exists().where(t.version_files.c.sha256 == c.sha256),
        sa.not_(sa.exists().where(t.branch_files.c.sha256 == c.sha256)),
        sa.not_(leased),
    )
    if after is not None:
        later = sa.and_(c.read_at_us == after.read_at_us, c.sha256 > after.digest)
        statement = statement.where(sa.or_(c.read_at_us > after.read_at_us, later))
    rows = connection.execute(statement.order_by(c.read_at_us, c.sha256).limit(AT_ONCE))
    return [Held(row.sha256, row.size_bytes, row.read_at_us) for row in rows]
