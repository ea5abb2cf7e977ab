"""Workspaces in the catalog: which files a branch of a Hub client holds that no version holds yet.

A branch is a list of files by digest and a commit id that follows from it. Only what is there now is kept: a branch has
no history, and its bytes are kept by its rows (garbage collection asks `branch_files`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from weft_registry import canonical
from weft_registry import digest as digests
from weft_registry.api import Version
from weft_registry.catalog import records
from weft_registry.catalog import tables as t
from weft_registry.errors import ExhaustedError
from weft_registry.reference import AdapterName

MAX_BRANCHES = 256
"""Workspaces of one adapter."""


@dataclass(frozen=True, order=True)
class BranchFile:
    """One file of a branch."""

    path: str
    sha256: str
    """ "sha256:" and 64 digits."""
    size_bytes: int


@dataclass(frozen=True)
class Branch:
    """What a branch holds now."""

    name: str
    head: str
    """40 digits: the commit id."""
    files: tuple[BranchFile, ...]
    """By path."""
    updated_at_us: int


def head_of(files: Iterable[BranchFile]) -> str:
    """The commit id of a workspace with these files: the same files, the same id."""
    listing = [[file.path, file.sha256, str(file.size_bytes)] for file in sorted(files)]
    # Not the digest of anything that can be a manifest, so no version has this id.
    return digests.of_bytes(b"weft workspace\0" + canonical.dumps(listing)).removeprefix("sha256:")[:40]


def find(connection: Connection, adapter_id: int, name: str) -> Branch | None:
    """A branch by its name."""
    c = t.branches.c
    row = connection.execute(sa.select(t.branches).where(c.adapter_id == adapter_id, c.branch == name)).one_or_none()
    return None if row is None else _branch(connection, adapter_id, row)


def find_head(connection: Connection, adapter_id: int, head: str) -> Branch | None:
    """A branch whose commit id is `head` now; the first by name, where several hold the same files."""
    c = t.branches.c
    statement = sa.select(t.branches).where(c.adapter_id == adapter_id, c.head == head).order_by(c.branch).limit(1)
    row = connection.execute(statement).one_or_none()
    return None if row is None else _branch(connection, adapter_id, row)


def heads(connection: Connection, adapter_id: int) -> dict[str, str]:
    """The commit ids of an adapter's branches, by name."""
    c = t.branches.c
    rows = connection.execute(sa.select(c.branch, c.head).where(c.adapter_id == adapter_id).order_by(c.branch))
    return {row.branch: row.head for row in rows}


def write(connection: Connection, adapter_id: int, name: str, files: Sequence[BranchFile]) -> str:
    """Makes a branch hold these files and no others, and returns its commit id. Raises `ExhaustedError`."""
    known = heads(connection, adapter_id)
    if name not in known and len(known) >= MAX_BRANCHES:
        raise ExhaustedError(
            f"{len(known)} branches, the most an adapter may have: delete some (HfApi.delete_branch)",
            reason="TOO_MANY_BRANCHES",
        )
    remove(connection, adapter_id, name)
    key, head = {"adapter_id": adapter_id, "branch": name}, head_of(files)
    connection.execute(t.branches.insert().values(**key, head=head, updated_at_us=records.now_us()))
    if files:
        rows = [{**key, "path": f.path, "sha256": f.sha256, "size_bytes": f.size_bytes} for f in files]
        connection.execute(t.branch_files.insert(), rows)
    return head


def remove(connection: Connection, adapter_id: int, name: str) -> bool:
    """Removes a branch; false if there was none."""
    for table in (t.branch_files, t.branches):
        found = connection.execute(table.delete().where(table.c.adapter_id == adapter_id, table.c.branch == name))
    return found.rowcount > 0


def add_adapter(connection: Connection, adapter: AdapterName) -> bool:
    """Makes an adapter without versions; false if it is there already."""
    if records.find_adapter(connection, adapter) is not None:
        return False
    names = {"namespace": adapter.namespace, "name": adapter.name}
    connection.execute(t.adapters.insert().values(**names, created_at_us=records.now_us()))
    return True


def remove_adapter(connection: Connection, adapter_id: int) -> None:
    """Removes an adapter that has no versions, with its branches and what is left of its aliases' history."""
    for table in (t.branch_files, t.branches, t.alias_moves):
        connection.execute(table.delete().where(table.c.adapter_id == adapter_id))
    connection.execute(t.adapters.delete().where(t.adapters.c.id == adapter_id))


def count_versions(connection: Connection, adapter_id: int) -> int:
    """How many versions an adapter has, yanked ones included."""
    statement = sa.select(sa.func.count()).select_from(t.versions).where(t.versions.c.adapter_id == adapter_id)
    return connection.execute(statement).scalar_one()


def used_bytes(connection: Connection, namespace: str) -> int:
    """The bytes of the distinct blobs that a namespace's versions and branches have."""
    a = t.adapters.c
    mine = sa.select(a.id).where(a.namespace == namespace)
    in_versions = (
        sa.select(t.version_files.c.sha256, t.version_files.c.size_bytes)
        .join(t.versions)
        .where(t.versions.c.adapter_id.in_(mine))
    )
    f = t.branch_files.c
    in_branches = sa.select(f.sha256, f.size_bytes).where(f.adapter_id.in_(mine))
    blobs = sa.union(in_versions, in_branches).subquery()
    return int(connection.execute(sa.select(sa.func.sum(blobs.c.size_bytes))).scalar_one() or 0)


def versions_with(connection: Connection, adapter_id: int, path: str, sha256: str) -> list[Version]:
    """The adapter's versions that are not yanked and whose file at `path` has this digest, newest first."""
    v, f = t.versions.c, t.version_files.c
    statement = (
        sa.select(v.id)
        .join(t.version_files, f.version_id == v.id)
        .where(v.adapter_id == adapter_id, v.yanked.is_(False), f.path == path, f.sha256 == sha256)
        .order_by(v.id.desc())
        .limit(100)
    )
    return records.versions(connection, list(connection.execute(statement).scalars()))


def _branch(connection: Connection, adapter_id: int, row: Any) -> Branch:
    c = t.branch_files.c
    statement = sa.select(t.branch_files).where(c.adapter_id == adapter_id, c.branch == row.branch).order_by(c.path)
    files = [BranchFile(file.path, file.sha256, file.size_bytes) for file in connection.execute(statement)]
    return Branch(row.branch, row.head, tuple(sorted(files)), row.updated_at_us)
