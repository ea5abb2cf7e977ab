"""What administrators see of a registry: the values that its administration answers with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True)
class Token:
    """A token, without its secret."""

    id: str
    name: str
    scopes: frozenset[str]
    namespaces: frozenset[str]
    """`{"*"}` is every namespace."""
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True)
class NewToken:
    """A token that was just made: the only moment at which its secret can be read."""

    token: Token
    secret: str


@dataclass(frozen=True)
class Quota:
    """What a namespace may hold; None is no limit."""

    namespace: str
    """ "*": of all namespaces that have none of their own."""
    max_bytes: int | None = None
    max_versions: int | None = None
    max_open_uploads: int | None = None


@dataclass(frozen=True)
class Usage:
    """What a namespace holds, and what it may."""

    quota: Quota
    used_bytes: int
    """Of distinct blobs: the same file in two versions counts once."""
    used_versions: int
    open_uploads: int


@dataclass(frozen=True)
class ProtectedAlias:
    """An alias that only administrators and some tokens may move."""

    namespace: str
    name: str
    """Empty: in every adapter of the namespace."""
    alias: str
    token_names: Sequence[str]


@dataclass(frozen=True)
class AuditEntry:
    """One line of the audit log."""

    sequence: int
    at: datetime
    actor: str
    action: str
    namespace: str
    subject: str
    detail_json: str


@dataclass(frozen=True)
class GarbageReport:
    """What a collection removed, or would."""

    removed_blobs: int
    removed_bytes: int
    kept_blobs: int
    dropped_uploads: int


@dataclass(frozen=True)
class CheckProgress:
    """How far a check of the whole registry is; the last one has `done` and the outcome."""

    checked_versions: int
    total_versions: int
    checked_bytes: int
    problems: tuple[str, ...] = ()
    """What is wrong, with the references concerned: the first hundred so far, and in the last progress all."""
    done: bool = False


class RegistryAdminApi(Protocol):
    """What administrators do, in a registry of this process or at the other end of a channel.

    `EmbeddedRegistry` and `weft_registry.remote.admin.RemoteAdmin` both are one. Methods raise the errors of
    `weft_registry.errors`, with the statuses that registry_admin.proto states.
    """

    def create_token(
        self, name: str, scopes: Sequence[str], namespaces: Sequence[str], expires_at: datetime | None = None
    ) -> NewToken:
        """Makes a token; `namespaces` of ["*"] means every one."""
        ...

    def list_tokens(self, *, include_ended: bool = False) -> list[Token]:
        """Tokens by name; with `include_ended` those that expired or were revoked, too."""
        ...

    def revoke_token(self, token: str) -> Token:
        """Ends a token, by its name or id, at once."""
        ...

    def usage(self, namespace: str) -> Usage:
        """What a namespace holds, and what it may."""
        ...

    def set_quota(self, quota: Quota) -> Quota:
        """Sets what a namespace may hold; only administrators of every namespace may."""
        ...

    def protect_alias(self, namespace: str, name: str, alias: str, token_names: Sequence[str]) -> ProtectedAlias:
        """Lets only administrators and these tokens move an alias; an empty `name` means in every adapter."""
        ...

    def unprotect_alias(self, namespace: str, name: str, alias: str) -> None:
        """Takes a protection back."""
        ...

    def protected_aliases(self, namespace: str) -> list[ProtectedAlias]:
        """The protections of a namespace; empty: of every namespace that the caller administers."""
        ...

    def audit_entries(
        self,
        namespace: str = "",
        *,
        actor: str = "",
        action: str = "",
        since: datetime | None = None,
        limit: int = 100,
    ) -> list[AuditEntry]:
        """The newest `limit` lines of the audit log, newest first."""
        ...

    def collect_garbage(self, *, dry_run: bool = False, grace_s: float = 3600.0) -> GarbageReport:
        """Removes the bytes that nothing needs."""
        ...

    def check(self) -> Iterator[CheckProgress]:
        """Proves every version complete and every blob's hash right."""
        ...

    def close(self) -> None:
        """Releases connections and files."""
        ...
