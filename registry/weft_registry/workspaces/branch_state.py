"""A branch at one moment, as the catalog has it: what it holds, which version it names, what a commit makes of it.

Everything here reads, within a transaction of the caller's. Knows no identities, no HTTP and no blobs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from weft_registry import artifact
from weft_registry.api import Version
from weft_registry.catalog import aliases, branches, records
from weft_registry.catalog.branches import BranchFile
from weft_registry.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
)
from weft_registry.reference import LATEST, AdapterName, Reference, check_label
from weft_registry.workspaces.commit import Delete, Put
from weft_registry.workspaces.paths import check_paths

MAIN = "main"
COMMIT_DIGITS = 40


@dataclass(frozen=True)
class State:
    """A branch at one moment."""

    adapter_id: int
    head: str
    files: tuple[BranchFile, ...]
    version: Version | None
    """The version that the branch's name names."""
    publishes: bool
    """What is whole here is a version at once."""
    alias: str
    """The alias that moves with it, besides `latest`; empty for none."""


def state_of(connection: Connection, adapter: AdapterName, branch: str) -> State:
    """The branch that a commit goes to. Raises `NotFoundError`, and `InvalidInputError` or `PreconditionError` for a
    name that nobody commits to."""
    adapter_id = records.adapter_id(connection, adapter)
    if branch == LATEST:
        raise InvalidInputError(f"{LATEST!r} follows every publish: commit to {MAIN!r}")
    check_label(branch, "branch")
    if aliases.find_tag(connection, adapter_id, branch) is not None:
        raise PreconditionError(
            f"{adapter}: {branch} is a tag, which never moves: commit to a branch", reason="TAG_EXISTS"
        )
    row = branches.find(connection, adapter_id, branch)
    alias = records.alias(connection, adapter_id, branch)
    publishes = branch == MAIN or alias is not None
    if row is None and not publishes:
        raise NotFoundError(
            f"{adapter} has no branch {branch!r}: make it with HfApi.create_branch", reason="VERSION_NOT_FOUND"
        )
    version = _version(connection, adapter, branch if alias else LATEST) if publishes else None
    if row is not None:
        head, files = row.head, row.files
    elif version is not None:
        head, files = version.digest.removeprefix("sha256:")[:COMMIT_DIGITS], files_of(version)
    else:
        head, files = branches.head_of(()), ()
    return State(adapter_id, head, files, version, publishes, branch if alias else "")


def _version(connection: Connection, adapter: AdapterName, label: str) -> Version | None:
    try:
        return records.resolve(connection, Reference(adapter, label))
    except NotFoundError:
        return None


def at(
    connection: Connection, adapter: AdapterName, adapter_id: int, revision: str
) -> Version | tuple[BranchFile, ...]:
    """What a revision names when it is to be frozen or gone on from: a workspace before the version of its name.

    Raises `NotFoundError`, `InvalidInputError`.
    """
    row = branches.find_head(connection, adapter_id, revision) or branches.find(connection, adapter_id, revision)
    if row is not None:
        return row.files
    version_id = None
    if len(revision) == COMMIT_DIGITS:
        version_id = records.find_prefix(connection, adapter_id, f"sha256:{revision}")
    if version_id is not None:
        return records.versions(connection, [version_id])[0]
    check_label(revision, "revision")
    if revision == MAIN and records.find_label(connection, adapter_id, MAIN) is None:
        revision = LATEST
        if records.find_label(connection, adapter_id, LATEST) is None:
            return ()
    return records.resolve(connection, Reference(adapter, revision))


def files_at(connection: Connection, adapter: AdapterName, adapter_id: int, revision: str) -> tuple[BranchFile, ...]:
    """The files of what a revision names. Raises as `at`."""
    found = at(connection, adapter, adapter_id, revision)
    return files_of(found) if isinstance(found, Version) else found


def refuse_tag(connection: Connection, adapter: AdapterName, adapter_id: int, tag: str) -> None:
    """Raises `AlreadyExistsError` for a tag that is there, `InvalidInputError` for the name of a branch."""
    holder = aliases.find_tag(connection, adapter_id, tag)
    if holder is not None:
        digest = records.versions(connection, [holder])[0].digest
        raise AlreadyExistsError(
            f"{adapter}:{tag} already names {digest}, for ever: choose another tag",
            reason="TAG_EXISTS",
            metadata={"tag": tag, "digest": digest},
        )
    if tag == MAIN or branches.find(connection, adapter_id, tag) is not None:
        raise InvalidInputError(f"{adapter}: {tag} is a branch: choose another tag")


def refuse_to_delete(connection: Connection, adapter: AdapterName, adapter_id: int, branch: str) -> None:
    """Raises, saying why there is no workspace of this name to delete."""
    if records.alias(connection, adapter_id, branch) is not None:
        raise PreconditionError(
            f"{adapter}: {branch} is an alias, and no branch: `weft alias rm {adapter} {branch}` removes it",
            reason="IS_ALIAS",
        )
    if branch == MAIN:
        raise PreconditionError(
            f"{adapter}: nothing is unfinished on {MAIN}, and {MAIN} itself stays", reason="IS_MAIN"
        )
    raise NotFoundError(f"{adapter} has no branch {branch[:140]!r}", reason="VERSION_NOT_FOUND")


def check_parent(parent: str, head: str, adapter: AdapterName, branch: str) -> None:
    """Raises `ConflictError` if the branch is not at the commit that a client expects; an empty one expects none."""
    if parent and not head.startswith(parent):
        raise ConflictError(
            f"{adapter}, branch {branch}: it is at commit {head}, not at the parent {parent}: somebody else committed; "
            "read it again and retry",
            reason="BRANCH_MOVED",
            metadata={"branch": branch, "head": head},
        )


def applied(
    files: Sequence[BranchFile], operations: Sequence[Put | Delete], put: Mapping[str, BranchFile]
) -> tuple[BranchFile, ...]:
    """The files after a commit. Raises `NotFoundError` for a file to delete that is not there, `InvalidInputError` for
    files that may not be on one branch."""
    by_path = {file.path: file for file in files}
    for operation in operations:
        if isinstance(operation, Put):
            size = put[operation.sha256].size_bytes
            by_path[operation.path] = BranchFile(operation.path, operation.sha256, size)
        elif operation.folder:
            # An artifact is one flat directory: the one folder is all of it.
            if operation.path.strip("./"):
                raise _no_entry(operation.path)
            by_path.clear()
        elif by_path.pop(operation.path, None) is None and operation.path != artifact.MANIFEST:
            # The manifest of a version is among its files for readers, and made anew with every version.
            raise _no_entry(operation.path)
    check_paths(by_path)
    return tuple(sorted(by_path.values()))


def _no_entry(path: str) -> NotFoundError:
    return NotFoundError(
        f"A file with this name doesn't exist: {path[:150]!r}: nothing was deleted", reason="FILE_NOT_FOUND"
    )


def files_of(version: Version) -> tuple[BranchFile, ...]:
    """The files of a version that a workspace begins with: all but the manifest, which follows from them."""
    return tuple(sorted(BranchFile(file.path, file.sha256, file.size) for file in version.manifest.files))
