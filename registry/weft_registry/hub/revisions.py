"""What a revision of the Hub means here.

Every version has a commit id: the first 40 digits of its digest. A tag or an alias is a name; a commit id is one
version for ever. `main`, where nobody made a tag or alias of that name, is `latest`.
"""

from __future__ import annotations

import re

from weft_registry.api import Version
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import InvalidInputError, NotFoundError
from weft_registry.reference import LATEST, AdapterName, check_label

MAIN = "main"
COMMIT_DIGITS = 40
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


def resolve(registry: EmbeddedRegistry, adapter: AdapterName, revision: str) -> Version:
    """The version that a revision names now. Raises `NotFoundError`; a yanked version is there by commit id alone."""
    if _COMMIT.fullmatch(revision):
        # Before any tag of this spelling: a client that was given a commit id must get what it was given.
        version = registry.resolve_prefix(adapter, f"sha256:{revision}")
        if version is not None:
            return version
    if digest := _DIGEST.fullmatch(revision):
        return registry.resolve(f"{adapter}@sha256:{digest[1]}")
    label = revision or MAIN
    try:
        check_label(label, "revision")
    except InvalidInputError as error:
        raise NotFoundError(error.message, reason="VERSION_NOT_FOUND") from error
    try:
        return registry.resolve(f"{adapter}:{label}")
    except NotFoundError as error:
        if label != MAIN or error.reason != "VERSION_NOT_FOUND":
            raise
        return registry.resolve(f"{adapter}:{LATEST}")
