"""What Hub clients commit to: a branch is a workspace, and what is whole on `main` is a version at once.

A commit changes the files of a branch. On `main`, and on a branch named like an alias, it is published as soon as the
files make a whole artifact: validated as every publish is, in one transaction with the end of the workspace. Until
then, and on every other branch, they stay a workspace, which a tag freezes into a version. Two commits at once: the
second one is applied to what the first one left, or refused if it named the commit that it expects.

Readers never see half an upload: a name that names a version reads that version, whatever is being committed to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from sqlalchemy import Connection

from weft_registry import digest as digests
from weft_registry.access import quotas
from weft_registry.access.blob_access import BlobAccess
from weft_registry.api import Published, Version
from weft_registry.base import BaseStore
from weft_registry.blobs.store import BlobStore
from weft_registry.catalog import aliases, audit, branches, records
from weft_registry.catalog.branches import BranchFile
from weft_registry.catalog.database import Catalog
from weft_registry.errors import (
    AlreadyExistsError,
    ConflictError,
    ExhaustedError,
    NotFoundError,
    PreconditionError,
)
from weft_registry.principal import Principal, Scope
from weft_registry.reference import AdapterName, check_label
from weft_registry.workspaces import branch_state, importing
from weft_registry.workspaces.branch_state import COMMIT_DIGITS, MAIN, State
from weft_registry.workspaces.commit import Commit, Delete, Put
from weft_registry.workspaces.importing import Ready, Unfinished

_ATTEMPTS = 64
"""As many others may commit to one branch between two looks at it."""


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


@dataclass(frozen=True)
class Committed:
    """What a commit came to."""

    commit: str
    """The commit id that the branch is at now."""
    published: Published | None
    unfinished: str = ""
    """What is missing from a version, for people; empty where nothing is, or where a tag will ask for it."""


class Publish(Protocol):
    """`EmbeddedRegistry.publish`."""

    def __call__(
        self,
        adapter: AdapterName,
        manifest_bytes: bytes,
        *,
        tags: Sequence[str] = (),
        aliases: Sequence[str] = (),
        follow: bool = True,
        within: Callable[[Connection], None] | None = None,
    ) -> Published:
        """See there."""
        ...


class _MovedError(Exception):
    """Somebody else committed to the branch meanwhile."""


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
        self._catalog, self._blobs, self._access, self._bases = catalog, blobs, access, bases
        self._principal, self._publish = principal, publish

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
        with self._catalog.read() as connection:  # Before gigabytes are hashed.
            state = branch_state.state_of(connection, adapter, branch)
            branch_state.check_parent(commit.parent, state.head, adapter, branch)
            if state.alias:
                self._principal.check(Scope.ALIAS, adapter.namespace)
        put = self._stored(adapter, commit.operations)
        for _ in range(_ATTEMPTS):
            with self._catalog.read() as connection:
                state = branch_state.state_of(connection, adapter, branch)
            branch_state.check_parent(commit.parent, state.head, adapter, branch)
            files = branch_state.applied(state.files, commit.operations, put)
            if files == state.files and (not state.publishes or state.version is not None):
                return Committed(state.head, None)
            try:
                return self._commit(adapter, branch, state, files, commit.summary)
            except _MovedError:
                continue
        raise ConflictError(
            f"{adapter}, branch {branch}: {_ATTEMPTS} other commits came first: try again", reason="BRANCH_MOVED"
        )

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
        manifest_bytes = found.manifest_bytes if isinstance(found, Version) else self._whole(adapter, found)

        def still_free(connection: Connection) -> None:
            branch_state.refuse_tag(connection, adapter, adapter_id, tag)

        return self._publish(adapter, manifest_bytes, tags=[tag], follow=False, within=still_free)

    def _commit(
        self, adapter: AdapterName, branch: str, state: State, files: tuple[BranchFile, ...], summary: str
    ) -> Committed:
        found: Ready | Unfinished | None = None
        if state.publishes:
            found = self._examined(adapter, state.adapter_id, files)
        if isinstance(found, Ready):

            def end_of_the_workspace(connection: Connection) -> None:
                self._refuse_if_moved(connection, adapter, branch, state)
                branches.remove(connection, state.adapter_id, branch)

            moving = [state.alias] if state.alias else []
            published = self._publish(adapter, found.manifest_bytes, aliases=moving, within=end_of_the_workspace)
            return Committed(published.version.digest.removeprefix("sha256:")[:COMMIT_DIGITS], published)
        with self._catalog.write() as connection:
            self._refuse_if_moved(connection, adapter, branch, state)
            head = branches.write(connection, state.adapter_id, branch, files)
            self._check_kept(connection, adapter, files)
            detail = {"branch": branch, "head": head, "summary": summary[:200]}
            self._record(connection, "branch.commit", adapter, **detail)
        return Committed(head, None, found.missing if found else "")

    def _stored(self, adapter: AdapterName, operations: Sequence[Put | Delete]) -> Mapping[str, BranchFile]:
        """The bytes of a commit as blobs, leased; by digest. Raises `NotFoundError` for bytes that nobody here sent."""
        put = [operation for operation in operations if isinstance(operation, Put)]
        found: dict[str, BranchFile] = {}
        for operation in put:
            if operation.spooled is not None and operation.sha256 not in found:
                assert operation.size_bytes is not None
                self._access.put_file(operation.spooled, operation.sha256, operation.size_bytes, adapter, None)
                found[operation.sha256] = BranchFile("", operation.sha256, operation.size_bytes)
        named = [operation for operation in put if operation.sha256 not in found]
        missing = set(self._access.claim([operation.sha256 for operation in named], adapter.namespace))
        for operation in named:
            size = None if operation.sha256 in missing else self._blobs.size(operation.sha256)
            if size is None or operation.size_bytes not in (None, size):
                raise NotFoundError(
                    f"{operation.path}: no bytes with the oid {operation.sha256[7:]} and this size were sent to "
                    f"{adapter.namespace}: send them first",
                    reason="OBJECT_NOT_FOUND",
                )
            found[operation.sha256] = BranchFile("", operation.sha256, size)
        return found

    def _examined(self, adapter: AdapterName, adapter_id: int, files: Sequence[BranchFile]) -> Ready | Unfinished:
        def earlier(path: str, sha256: str) -> Sequence[Version]:
            with self._catalog.read() as connection:
                return branches.versions_with(connection, adapter_id, path, sha256)

        def store(path: Path) -> BranchFile:
            return self.receive(adapter, path, digests.of_file(path), path.stat().st_size)

        def open_blob(digest: str) -> BinaryIO:
            return self._blobs.open(digest)

        return importing.examine(files, adapter.name, self._bases, open_blob, store, earlier)

    def _whole(self, adapter: AdapterName, files: Sequence[BranchFile]) -> bytes:
        with self._catalog.read() as connection:
            adapter_id = records.adapter_id(connection, adapter)
        found = self._examined(adapter, adapter_id, files)
        if isinstance(found, Unfinished):
            raise PreconditionError(
                f"{adapter}: not a whole artifact yet, so it cannot be tagged: {found.missing}",
                reason="ARTIFACT_UNFINISHED",
            )
        return found.manifest_bytes

    def _refuse_if_moved(self, connection: Connection, adapter: AdapterName, branch: str, state: State) -> None:
        now = branch_state.state_of(connection, adapter, branch)
        if (now.adapter_id, now.head, now.publishes, now.alias) != (
            state.adapter_id,
            state.head,
            state.publishes,
            state.alias,
        ):
            raise _MovedError

    def _check_kept(self, connection: Connection, adapter: AdapterName, files: Sequence[BranchFile]) -> None:
        """In the transaction that needs them: the bytes are there, and not more than the namespace may hold."""
        if missing := self._blobs.missing(sorted({file.sha256 for file in files})):
            raise PreconditionError(
                f"{len(missing)} files were removed meanwhile, the first is {missing[0]}: upload again",
                reason="BLOBS_MISSING",
            )
        limit = quotas.quota_of(connection, adapter.namespace).max_bytes
        if limit is not None and (used := branches.used_bytes(connection, adapter.namespace)) > limit:
            raise ExhaustedError(
                f"namespace {adapter.namespace}: {used} bytes with this commit, of {limit}: delete versions and "
                "branches that nobody needs, or ask an administrator for more (`weft quota set`)",
                reason="QUOTA_EXCEEDED",
                metadata={"namespace": adapter.namespace, "quota": "bytes", "limit": str(limit)},
            )

    def _check_publish(self, adapter: AdapterName) -> None:
        # Who may not even read it is told that it is not there.
        if not self._principal.may(Scope.PUBLISH, adapter.namespace):
            self._principal.check_read(adapter)
        self._principal.check(Scope.PUBLISH, adapter.namespace)

    def _record(self, connection: Connection, action: str, adapter: AdapterName, **detail: Any) -> None:
        audit.record(connection, self._principal.name, action, adapter.namespace, str(adapter), detail)
