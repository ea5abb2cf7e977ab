"""What Hub clients commit to: a branch is a workspace, and what is whole on `main` is a version at once.

A commit changes the files of a branch. On `main`, and on a branch named like an alias, it is published as soon as the
files make a whole artifact. Until then, and on every other branch, they stay a workspace, which a tag freezes into a
version.

Readers never see half an upload: a name that names a version reads that version, whatever is being committed to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from weft_registry.access.blob_access import BlobAccess
from weft_registry.api import Published, Version
from weft_registry.base import BaseStore
from weft_registry.blobs.store import BlobStore
from weft_registry.catalog import aliases, audit, branches, records
from weft_registry.catalog.branches import BranchFile
from weft_registry.catalog.database import Catalog
from weft_registry.errors import (
    AlreadyExistsError,
    PreconditionError,
)
from weft_registry.principal import Principal, Scope
from weft_registry.reference import AdapterName, check_label
from weft_registry.workspaces import branch_state
from weft_registry.workspaces.branch_state import MAIN
from weft_registry.workspaces.commit import Commit
from weft_registry.workspaces.committing import Committed, Committing, Publish


@dataclass(frozen=True)
class Workspace:
    """What a branch holds that is no version."""

    adapter: AdapterName
    branch: str
    head: str
    """The commit id."""
    files: tuple[BranchFile, ...]
    """By path."""
    updated_at: datetime


class Workspaces:
    """The branches of a registry's adapters, as one identity may use them. Owns nothing."""

    def __init__(
        self,
        catalog: Catalog,
        blobs: BlobStore,
        access: BlobAccess,
        bases: BaseStore,
        principal: Principal,
        publish: Publish,
    ) -> None:
        """`access` and `publish` act as `principal`."""
        self._catalog, self._access, self._principal, self._publish = catalog, access, principal, publish
        self._committing = Committing(catalog, blobs, access, bases, principal, publish)

    def create_adapter(self, adapter: AdapterName) -> None:
        """Makes an adapter that has no versions yet. Raises `AlreadyExistsError`."""
        self._principal.check(Scope.PUBLISH, adapter.namespace)
        with self._catalog.write() as connection:
            if not branches.add_adapter(connection, adapter):
                raise AlreadyExistsError(f"{adapter} is there already", reason="ADAPTER_EXISTS")
            self._record(connection, "repo.create", adapter)

    def delete_adapter(self, adapter: AdapterName) -> None:
        """Removes an adapter that has no versions. Raises `NotFoundError`, `PreconditionError`."""
        self._check_publish(adapter)
        with self._catalog.write() as connection:
            adapter_id = records.adapter_id(connection, adapter)
            if count := branches.count_versions(connection, adapter_id):
                raise PreconditionError(
                    f"{adapter} has {count} published versions, which are not deleted over HTTP: delete each with "
                    f"`weft delete {adapter}@sha256:...` first",
                    reason="ADAPTER_HAS_VERSIONS",
                    metadata={"adapter": str(adapter), "versions": str(count)},
                )
            branches.remove_adapter(connection, adapter_id)
            self._record(connection, "repo.delete", adapter)

    def find(self, adapter: AdapterName, revision: str) -> Workspace | None:
        """The workspace that a branch's name or a commit id names. `main` of an adapter without versions is one, and
        empty at first. Raises `NotFoundError` for an adapter that is not there."""
        self._principal.check_read(adapter)
        with self._catalog.read() as connection:
            adapter_id = records.adapter_id(connection, adapter, self._principal.readable)
            branch = branches.find_head(connection, adapter_id, revision) or branches.find(
                connection, adapter_id, revision
            )
            if branch is not None:
                at = records.from_us(branch.updated_at_us)
                return Workspace(adapter, branch.name, branch.head, branch.files, at)
            empty = branches.head_of(())
            if revision in (MAIN, empty) and not branches.count_versions(connection, adapter_id):
                return Workspace(adapter, MAIN, empty, (), records.from_us(records.now_us()))
        return None

    def heads(self, adapter: AdapterName) -> dict[str, str]:
        """The commit ids of an adapter's workspaces, by branch. Raises `NotFoundError`."""
        self._principal.check_read(adapter)
        with self._catalog.read() as connection:
            adapter_id = records.adapter_id(connection, adapter, self._principal.readable)
            found = branches.heads(connection, adapter_id)
            if MAIN not in found and not branches.count_versions(connection, adapter_id):
                found[MAIN] = branches.head_of(())
            return found

    def target(self, adapter: AdapterName, branch: str) -> Workspace:
        """The files that a commit to `branch` would begin with. Raises as `commit` does."""
        self._check_publish(adapter)
        with self._catalog.read() as connection:
            state = branch_state.state_of(connection, adapter, branch)
            return Workspace(adapter, branch, state.head, state.files, records.from_us(records.now_us()))

    def receive(self, adapter: AdapterName, path: Path, digest: str, size_bytes: int) -> BranchFile:
        """Stores a file that commits may then name. Raises what `EmbeddedRegistry.upload` raises."""
        self._check_publish(adapter)
        self._access.put_file(path, digest, size_bytes, adapter, None)
        return BranchFile(path.name, digest, size_bytes)

    def has(self, adapter: AdapterName, digest: str) -> bool:
        """Whether the namespace has shown these bytes, so that a commit may name them."""
        self._check_publish(adapter)
        return not self._access.claim([digest], adapter.namespace)

    def commit(self, adapter: AdapterName, branch: str, commit: Commit) -> Committed:
        """Applies a commit to a branch, and publishes what becomes whole where that is what the branch is for.

        Raises `NotFoundError` for what is not there, `ConflictError` if the branch is not at the commit's parent,
        `InvalidInputError`, `UnsupportedError` and `PreconditionError` for what is refused; nothing is changed then.
        """
        self._check_publish(adapter)
        return self._committing.commit(adapter, branch, commit)

    def create_branch(self, adapter: AdapterName, branch: str, start: str, *, empty: bool = False) -> str:
        """Makes a branch that holds what `start` does (a tag, an alias, a branch, a commit id), or nothing, and returns
        its commit id. Raises `AlreadyExistsError`, `NotFoundError`."""
        self._check_publish(adapter)
        check_label(branch, "branch")
        with self._catalog.write() as connection:
            adapter_id = records.adapter_id(connection, adapter)
            taken = "a branch"
            if aliases.find_tag(connection, adapter_id, branch) is not None:
                taken = "a tag, which never moves"
            elif records.alias(connection, adapter_id, branch) is not None:
                taken = "an alias: commit to it, and what is whole is published and the alias moves there"
            elif branch != MAIN and branches.find(connection, adapter_id, branch) is None:
                taken = ""
            if taken:
                raise AlreadyExistsError(f"{adapter}: {branch} is {taken}", reason="BRANCH_EXISTS")
            files = () if empty else branch_state.files_at(connection, adapter, adapter_id, start or MAIN)
            head = branches.write(connection, adapter_id, branch, files)
            self._record(connection, "branch.create", adapter, branch=branch, head=head)
            return head

    def delete_branch(self, adapter: AdapterName, branch: str) -> None:
        """Removes a workspace. Raises `NotFoundError`, `PreconditionError` for the name of a version."""
        self._check_publish(adapter)
        with self._catalog.write() as connection:
            adapter_id = records.adapter_id(connection, adapter)
            if not branches.remove(connection, adapter_id, branch):
                branch_state.refuse_to_delete(connection, adapter, adapter_id, branch)
            self._record(connection, "branch.delete", adapter, branch=branch)

    def create_tag(self, adapter: AdapterName, tag: str, revision: str) -> Published:
        """Names what `revision` names for ever. A workspace is validated and becomes a version; no alias moves, except
        that `latest` is made where there is none. Raises `AlreadyExistsError`, and as `commit`."""
        self._check_publish(adapter)
        check_label(tag, "tag")
        with self._catalog.read() as connection:
            adapter_id = records.adapter_id(connection, adapter)
            branch_state.refuse_tag(connection, adapter, adapter_id, tag)
            found = branch_state.at(connection, adapter, adapter_id, revision or MAIN)
        manifest_bytes = found.manifest_bytes if isinstance(found, Version) else self._committing.whole(adapter, found)

        def still_free(connection: Connection) -> None:
            branch_state.refuse_tag(connection, adapter, adapter_id, tag)

        return self._publish(adapter, manifest_bytes, tags=[tag], follow=False, within=still_free)

    def _check_publish(self, adapter: AdapterName) -> None:
        # Who may not even read it is told that it is not there.
        if not self._principal.may(Scope.PUBLISH, adapter.namespace):
            self._principal.check_read(adapter)
        self._principal.check(Scope.PUBLISH, adapter.namespace)

    def _record(self, connection: Connection, action: str, adapter: AdapterName, **detail: Any) -> None:
        audit.record(connection, self._principal.name, action, adapter.namespace, str(adapter), detail)
