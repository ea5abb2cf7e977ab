"""What a revision of the Hub means here.

Every version has a commit id: the first 40 digits of its digest. A tag or an alias is a name; a commit id is one
version for ever. `main`, where nobody made a tag or alias of that name, is `latest`. A branch that names no version is
what was committed to it, and so is its commit id as long as the branch is there.
"""

from __future__ import annotations

import re

from weft_registry.api import Version
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import InvalidInputError, NotFoundError, UnavailableError
from weft_registry.reference import LATEST, AdapterName, check_label
from weft_registry.workspaces.branch_state import COMMIT_DIGITS, MAIN
from weft_registry.workspaces.workspaces import Workspace

Found = Version | Workspace
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")


def commit_id(digest: str) -> str:
    """The commit id of the version with this digest."""
    return digest.removeprefix("sha256:")[:COMMIT_DIGITS]


def adapter_name(repo: str) -> AdapterName:
    """The adapter that a repository id names. Raises `NotFoundError`: what can be no name is not there."""
    try:
        return AdapterName.parse(repo)
    except InvalidInputError as error:
        raise NotFoundError(error.message, reason="ADAPTER_NOT_FOUND") from error


def resolve(registry: EmbeddedRegistry, adapter: AdapterName, revision: str) -> Found:
    """What a revision names now. Raises `NotFoundError`; a yanked version is there by commit id alone.

    A version before a workspace: while an upload to `main` is unfinished, readers get what was published last.
    """
    if _COMMIT.fullmatch(revision):
        # Before any tag of this spelling: a client that was given a commit id must get what it was given.
        version = registry.resolve_prefix(adapter, f"sha256:{revision}")
        if version is not None:
            return version
        workspace = registry.workspaces.find(adapter, revision)
        if workspace is not None:
            return workspace
    if digest := _DIGEST.fullmatch(revision):
        return registry.resolve(f"{adapter}@sha256:{digest[1]}")
    label = revision or MAIN
    try:
        check_label(label, "revision")
    except InvalidInputError as error:
        raise NotFoundError(error.message, reason="VERSION_NOT_FOUND") from error
    try:
        return registry.resolve(f"{adapter}:{label}")
    except (NotFoundError, UnavailableError) as error:
        # A mirror that cannot ask whether there is a `main` upstream has its `latest`.
        if error.reason != "VERSION_NOT_FOUND" and (label, error.reason) != (MAIN, "UPSTREAM_UNREACHABLE"):
            raise
        if label == MAIN:
            latest = _latest(registry, adapter)
            if latest is not None:
                return latest
        workspace = registry.workspaces.find(adapter, label)
        if workspace is None:
            raise
        return workspace


def _latest(registry: EmbeddedRegistry, adapter: AdapterName) -> Version | None:
    try:
        return registry.resolve(f"{adapter}:{LATEST}")
    except NotFoundError:
        return None
