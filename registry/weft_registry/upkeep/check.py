"""Proves a registry whole: every version is what its digest says, every blob is there and right, every name names
something. Changes nothing, and may run beside everything else.

Each blob is read once, with the first version that has it, so that memory does not grow with the registry. Versions
that are published or deleted meanwhile may be looked at or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from weft_registry import digest as digests
from weft_registry import parts
from weft_registry.admin_api import CheckProgress
from weft_registry.api import Version
from weft_registry.blobs.store import BlobStore
from weft_registry.catalog import mirrored, records
from weft_registry.catalog import tables as t
from weft_registry.catalog.database import Catalog
from weft_registry.errors import CorruptionError, NotFoundError, WeftError
from weft_registry.manifest import Manifest
from weft_registry.reference import Reference

_AT_ONCE = 50
"""Versions to a query: a manifest may have megabytes."""
_SHOWN = 100
"""Problems in a progress that is not the last."""
_NAMED = 3
"""Of the versions that share a damaged blob, so many are named."""


class Checker:
    """Owns neither catalog nor blobs. One check each."""

    def __init__(self, catalog: Catalog, blobs: BlobStore) -> None:
        self._catalog = catalog
        self._blobs = blobs
        self._problems: list[str] = []
        self._bytes = 0
        with catalog.read() as connection:
            # What a mirror lists it need not hold: that comes when somebody asks for it.
            self._partly_held = mirrored.is_mirror(connection)

    def check(self) -> Iterator[CheckProgress]:
        """Checks everything; the last progress has `done` and all problems."""
        with self._catalog.read() as connection:
            total = connection.execute(sa.select(sa.func.count()).select_from(t.versions)).scalar_one()
            self._problems += _damage(connection)
        checked, last = 0, 0
        while True:
            with self._catalog.read() as connection:
                v = t.versions.c
                ids = list(
                    connection.execute(sa.select(v.id).where(v.id > last).order_by(v.id).limit(_AT_ONCE)).scalars()
                )
                versions = list(zip(ids, records.versions(connection, ids), strict=True))
                files = {i: connection.execute(_files(i)).all() for i in ids}
                self._check_documents(connection, versions, files)
            if not ids:
                break
            for i, _ in versions:
                for file in files[i]:
                    if file.is_first:
                        self._check_blob(file.sha256, file.size_bytes)
                        yield self._progress(checked, total)
                checked, last = checked + 1, i
                yield self._progress(checked, max(total, checked))
        with self._catalog.read() as connection:
            self._problems += _wrong_names(connection)
            branch_blobs = connection.execute(_only_in_branches()).all()
        for blob in branch_blobs:
            self._check_blob(blob.sha256, blob.size_bytes)
            yield self._progress(checked, max(total, checked))
        yield CheckProgress(checked, checked, self._bytes, tuple(self._problems), done=True)

    def _progress(self, checked: int, total: int) -> CheckProgress:
        return CheckProgress(checked, total, self._bytes, tuple(self._problems[:_SHOWN]))

    def _check_documents(
        self, connection: Connection, versions: Sequence[tuple[int, Version]], files: dict[int, Sequence[Any]]
    ) -> None:
        """What the catalog says of these versions, against their manifests."""
        for i, version in versions:
            name = f"{version.adapter}@{version.digest}"
            found = digests.of_bytes(version.manifest_bytes)
            if found != version.digest:
                self._problems.append(f"{name}: the stored manifest has the digest {found}")
                continue
            try:
                manifest = Manifest.parse(version.manifest_bytes)
            except WeftError as error:
                self._problems.append(f"{name}: {error.message}")
                continue
            promised = {(file.path, file.sha256, file.size) for file in manifest.files}
            listed = {(row.path, row.sha256, row.size_bytes) for row in files[i]}
            self._problems += [
                f"{name}: the catalog and the manifest differ about the file {path}"
                for path in sorted({file[0] for file in promised ^ listed})
            ]
            for part in () if self._partly_held else parts.parts_of(manifest):
                if not _is_there(connection, part):
                    self._problems.append(f"{name}: its part {part} is not in this registry")

    def _check_blob(self, digest: str, size_bytes: int) -> None:
        if self._partly_held and self._blobs.missing([digest]):
            return
        try:
            size = self._blobs.verify(digest)
        except (CorruptionError, NotFoundError) as error:
            if self._partly_held and isinstance(error, NotFoundError):
                return  # Evicted since.
            said = error.message
        else:
            self._bytes += size
            if size == size_bytes:
                return
            said = f"blob {digest} has {size} bytes, and the catalog says {size_bytes}"
        with self._catalog.read() as connection:
            users = _users(connection, digest)
        # Nobody has it any more: it was deleted and collected while this looked at it.
        if users:
            more = f" and {len(users) - _NAMED} more" if len(users) > _NAMED else ""
            self._problems.append(f"{', '.join(users[:_NAMED])}{more}: {said}")


def _files(version_id: int) -> sa.Select[Any]:
    """A version's files, and whether it is the first version that has the blob."""
    files, others = t.version_files, t.version_files.alias()
    elsewhere = sa.exists().where(others.c.sha256 == files.c.sha256, others.c.version_id < files.c.version_id)
    twice = sa.exists().where(
        others.c.sha256 == files.c.sha256,
        others.c.version_id == files.c.version_id,
        others.c.path < files.c.path,
    )
    first = sa.not_(sa.or_(elsewhere, twice)).label("is_first")
    return sa.select(files, first).where(files.c.version_id == version_id).order_by(files.c.path)


def _only_in_branches() -> sa.Select[Any]:
    files = t.branch_files.c
    published = sa.exists().where(t.version_files.c.sha256 == files.sha256)
    size = sa.func.max(files.size_bytes).label("size_bytes")
    return sa.select(files.sha256, size).where(sa.not_(published)).group_by(files.sha256)


def _users(connection: Connection, digest: str) -> list[str]:
    """The files of versions and branches that are this blob."""
    a, v, f, b = t.adapters.c, t.versions.c, t.version_files.c, t.branch_files.c
    of_versions = (
        sa.select(a.namespace, a.name, v.digest, f.path)
        .select_from(t.version_files.join(t.versions, v.id == f.version_id).join(t.adapters, a.id == v.adapter_id))
        .where(f.sha256 == digest)
        .order_by(v.id, f.path)
    )
    of_branches = (
        sa.select(a.namespace, a.name, b.branch, b.path)
        .select_from(t.branch_files.join(t.adapters, a.id == b.adapter_id))
        .where(b.sha256 == digest)
        .order_by(a.namespace, a.name, b.branch, b.path)
    )
    return [
        *(f"{row.namespace}/{row.name}@{row.digest} {row.path}" for row in connection.execute(of_versions)),
        *(f"{row.namespace}/{row.name}, branch {row.branch}, {row.path}" for row in connection.execute(of_branches)),
    ]


def _is_there(connection: Connection, part: Reference) -> bool:
    adapter = records.find_adapter(connection, part.adapter)
    return (
        adapter is not None
        and part.digest is not None
        and records.find_digest(connection, adapter, part.digest) is not None
    )


def _wrong_names(connection: Connection) -> list[str]:
    """Tags and aliases that name no version of their adapter, and aliases that name a yanked one."""
    found = []
    a, v = t.adapters.c, t.versions.c
    for table, column in ((t.tags, t.tags.c.tag), (t.aliases, t.aliases.c.alias)):
        statement = (
            sa.select(a.namespace, a.name, column.label("label"), v.digest)
            .select_from(
                table.join(t.adapters, a.id == table.c.adapter_id).outerjoin(t.versions, v.id == table.c.version_id)
            )
            .where(sa.or_(v.id.is_(None), v.adapter_id != table.c.adapter_id))
        )
        found += [
            f"{row.namespace}/{row.name}:{row.label} names "
            + (f"{row.digest}, a version of another adapter" if row.digest else "a version that is not there")
            for row in connection.execute(statement)
        ]
    statement = (
        sa.select(a.namespace, a.name, t.aliases.c.alias, v.digest)
        .select_from(t.aliases.join(t.adapters).join(t.versions, v.id == t.aliases.c.version_id))
        .where(v.yanked.is_(True))
    )
    return found + [
        f"{row.namespace}/{row.name}:{row.alias} names {row.digest}, which is yanked"
        for row in connection.execute(statement)
    ]


def _damage(connection: Connection) -> list[str]:
    """What SQLite finds wrong in its own file; PostgreSQL checks its pages as it reads them."""
    if connection.dialect.name != "sqlite":
        return []
    said = connection.exec_driver_sql("PRAGMA quick_check(20)").scalars().all()
    dangling = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    return [
        *(f"the catalog is damaged: {line}" for line in said if line != "ok"),
        *(f"the catalog: row {row[1]} of {row[0]} refers to a row of {row[2]} that is not there" for row in dangling),
    ]
