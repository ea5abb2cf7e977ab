"""What a namespace may hold: limits on bytes, versions and open uploads, counted in the transaction that adds to them.

Bytes are those of distinct blobs: the same file in two versions of a namespace counts once, and once in each namespace
that has it, whoever sent it first.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Connection

from weft_registry.admin_api import Quota, Usage
from weft_registry.catalog import records
from weft_registry.catalog import tables as t
from weft_registry.errors import ExhaustedError, InvalidInputError
from weft_registry.principal import EVERY
from weft_registry.reference import check_name

UPLOAD_IDLE_S = 24 * 3600.0
"""An upload that nobody took up for so long does not count any more."""
MAX_LIMIT = (1 << 63) - 1


def quota_of(connection: Connection, namespace: str) -> Quota:
    """What holds in `namespace`: its own quota, else that of "*", else none."""
    c = t.quotas.c
    rows = {
        row.namespace: row for row in connection.execute(sa.select(t.quotas).where(c.namespace.in_((namespace, EVERY))))
    }
    row = rows.get(namespace, rows.get(EVERY))
    if row is None:
        return Quota(namespace)
    return Quota(row.namespace, row.max_bytes, row.max_versions, row.max_open_uploads)


def set_quota(connection: Connection, quota: Quota) -> Quota:
    """Sets the quota of its namespace ("*": of all without their own). Raises `InvalidInputError`."""
    if quota.namespace != EVERY:
        check_name(quota.namespace, "namespace")
    limits = {
        "max_bytes": quota.max_bytes,
        "max_versions": quota.max_versions,
        "max_open_uploads": quota.max_open_uploads,
    }
    for field, limit in limits.items():
        if limit is not None and not 0 <= limit <= MAX_LIMIT:
            raise InvalidInputError(f"{field}: {limit}: from 0 on, or none at all for no limit")
    here = t.quotas.c.namespace == quota.namespace
    connection.execute(t.quotas.delete().where(here))
    connection.execute(t.quotas.insert().values(namespace=quota.namespace, **limits))
    return quota


def usage(connection: Connection, namespace: str) -> Usage:
    """What `namespace` holds, and may; for "*", what the registry holds and what is the rule for all."""
    return Usage(
        quota_of(connection, namespace),
        used_bytes(connection, namespace),
        _used_versions(connection, namespace),
        open_uploads(connection, namespace),
    )


def check_publish(connection: Connection, namespace: str) -> None:
    """After a version was added, in its transaction. Raises `ExhaustedError` where there is now more than may be."""
    quota = quota_of(connection, namespace)
    if quota.max_versions is not None and (used := _used_versions(connection, namespace)) > quota.max_versions:
        raise _exhausted(namespace, "versions", quota.max_versions, used - 1, "1 more")
    if quota.max_bytes is not None and (over := _over(connection, namespace, quota.max_bytes)) is not None:
        raise _exhausted(namespace, "bytes", quota.max_bytes, over, "with this version")


def check_upload(connection: Connection, namespace: str, size_bytes: int) -> None:
    """Before an upload is opened. Raises `ExhaustedError` for one too many, or bytes that could not be published."""
    quota = quota_of(connection, namespace)
    if quota.max_open_uploads is not None:
        used = open_uploads(connection, namespace)
        if used >= quota.max_open_uploads:
            raise _exhausted(namespace, "open_uploads", quota.max_open_uploads, used, "1 more")
    if quota.max_bytes is not None:
        over = _over(connection, namespace, quota.max_bytes - size_bytes)
        if over is not None:
            raise _exhausted(namespace, "bytes", quota.max_bytes, over, f"{size_bytes} more")


def used_bytes(connection: Connection, namespace: str) -> int:
    """The bytes of the distinct blobs that a namespace's versions have, yanked ones too."""
    f = t.version_files.c
    blobs = _within(sa.select(f.sha256, sa.func.max(f.size_bytes).label("size_bytes")), namespace).group_by(f.sha256)
    return int(connection.execute(sa.select(sa.func.sum(blobs.subquery().c.size_bytes))).scalar_one() or 0)


def open_uploads(connection: Connection, namespace: str) -> int:
    """Uploads that were begun and neither finished nor left alone for a day."""
    c = t.uploads.c
    statement = sa.select(sa.func.count()).where(c.touched_at_us > records.now_us() - int(UPLOAD_IDLE_S * 1e6))
    if namespace != EVERY:
        statement = statement.where(c.namespace == namespace)
    return connection.execute(statement).scalar_one()


def _over(connection: Connection, namespace: str, limit: int) -> int | None:
    """The bytes that a namespace has, if they are more than `limit`."""
    # What distinct blobs take is never more than what versions take together, and that is one sum.
    if _version_bytes(connection, namespace) <= limit:
        return None
    used = used_bytes(connection, namespace)
    return used if used > limit else None


def _used_versions(connection: Connection, namespace: str) -> int:
    statement = sa.select(sa.func.count()).select_from(t.versions).join(t.adapters)
    if namespace != EVERY:
        statement = statement.where(t.adapters.c.namespace == namespace)
    return connection.execute(statement).scalar_one()


def _version_bytes(connection: Connection, namespace: str) -> int:
    statement = sa.select(sa.func.sum(t.versions.c.size_bytes)).join(t.adapters)
    if namespace != EVERY:
        statement = statement.where(t.adapters.c.namespace == namespace)
    return int(connection.execute(statement).scalar_one() or 0)


def _within(statement: sa.Select[tuple[str, int]], namespace: str) -> sa.Select[tuple[str, int]]:
    if namespace == EVERY:
        return statement
    return (
        statement.select_from(t.version_files)
        .join(t.versions)
        .join(t.adapters)
        .where(t.adapters.c.namespace == namespace)
    )


def _exhausted(namespace: str, what: str, limit: int, used: int, wanted: str) -> ExhaustedError:
    words = what.replace("_", " ")
    way_out = {
        "bytes": "delete versions that nobody needs",
        "versions": "delete versions that nobody needs",
        "open_uploads": "finish some of them",
    }[what]
    return ExhaustedError(
        f"namespace {namespace}: {words}: {used} of {limit} used, {wanted}: {way_out}, or ask an administrator for "
        "more (`weft quota set`)",
        reason="QUOTA_EXCEEDED",
        metadata={"namespace": namespace, "quota": what, "limit": str(limit), "used": str(used)},
    )
