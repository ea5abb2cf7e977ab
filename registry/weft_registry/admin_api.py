"""What administrators see of a registry: the values that its administration answers with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime


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
    """What is wrong so far, with the references concerned."""
    done: bool = False
