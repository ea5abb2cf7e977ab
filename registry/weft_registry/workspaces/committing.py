"""A commit applied to a branch, and what is whole on it published: validated as every publish is, in one transaction
with the end of the workspace.

Two commits at once: the second one is applied to what the first one left, or refused if it named the commit that it
expects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from sqlalchemy import Connection

from weft_registry import digest as digests
from weft_registry.access import quotas
from weft_registry.access.blob_access import BlobAccess
from weft_registry.api import Published, Version
from weft_registry.base import BaseStore
from weft_registry.blobs.store import BlobStore
from weft_registry.catalog import audit, branches, records
from weft_registry.catalog.branches import BranchFile
from weft_registry.catalog.database import Catalog
from weft_registry.errors import (
    ConflictError,
    ExhaustedError,
    NotFoundError,
    PreconditionError,
)
from weft_registry.principal import Principal, Scope
from weft_registry.reference import AdapterName
from weft_registry.workspaces import branch_state, importing
from weft_registry.workspaces.branch_state import COMMIT_DIGITS, State
from weft_registry.workspaces.commit import Commit, Delete, Put
from weft_registry.workspaces.importing import Ready, Unfinished

_ATTEMPTS = 64
"""As many others may commit to one branch between two looks at it."""


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


class Committing:
    """How commits come to a registry's branches, as one identity may make them. Owns nothing."""

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

    def commit(self, adapter: AdapterName, branch: str, commit: Commit) -> Committed:
        """Applies a commit to a branch, and publishes what becomes whole where that is what the branch is for.

        Raises `NotFoundError` for what is not there, `ConflictError` if the branch is not at the commit's parent,
        `InvalidInputError`, `UnsupportedError` and `PreconditionError` for what is refused; nothing is changed then.
        Whether the identity may publish there is for the caller to ask.
        """
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

    def whole(self, adapter: AdapterName, files: Sequence[BranchFile]) -> bytes:
        """The manifest of the artifact that the files of a branch are. Raises `PreconditionError` if they are none yet,
        and as `commit`."""
        with self._catalog.read() as connection:
            adapter_id = records.adapter_id(connection, adapter)
        found = self._examined(adapter, adapter_id, files)
        if isinstance(found, Unfinished):
            raise PreconditionError(
                f"{adapter}: not a whole artifact yet, so it cannot be tagged: {found.missing}",
                reason="ARTIFACT_UNFINISHED",
            )
        return found.manifest_bytes

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
            audit.record(connection, self._principal.name, "branch.commit", adapter.namespace, str(adapter), detail)
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
            digest, size_bytes = digests.of_file(path), path.stat().st_size
            self._access.put_file(path, digest, size_bytes, adapter, None)
            return BranchFile(path.name, digest, size_bytes)

        def open_blob(digest: str) -> BinaryIO:
            return self._blobs.open(digest)

        return importing.examine(files, adapter.name, self._bases, open_blob, store, earlier)

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
