"""Who asks, and what they may do. Knows no transport and no database."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from weft_registry.errors import ForbiddenError, NotFoundError, UnauthenticatedError
from weft_registry.reference import AdapterName

EVERY = "*"
"""In a principal's namespaces: all of them."""


class Scope(StrEnum):
    """What a token may be used for. Each is granted by itself: `admin` alone implies the others."""

    READ = "read"
    """Resolve, list and download."""
    PUBLISH = "publish"
    """Upload and publish, yank and delete, sign. `latest` moves with it."""
    ALIAS = "alias"
    """Move, remove and roll back aliases that are not protected."""
    ADMIN = "admin"
    """Everything, and tokens, quotas, protection, collection, the audit log."""


@dataclass(frozen=True)
class Principal:
    """One identity, as a call carries it."""

    name: str
    """In the audit log and in histories: a token's name, "local" for this process's own user, "anonymous"."""
    scopes: frozenset[Scope]
    namespaces: frozenset[str]
    """Where the scopes hold; `{"*"}` is everywhere."""
    expires_at: datetime | None = None
    peer: str = field(default="", compare=False)
    """Where the call comes from, for the audit log: an address, with the name of a client certificate."""
    on_denied: Callable[[Principal, str, str, str], None] | None = field(default=None, compare=False, repr=False)
    """Told of every check that fails: who, the scope, the namespace and the subject. Must return at once: a check may
    happen inside of a transaction."""

    @property
    def readable(self) -> frozenset[str] | None:
        """The namespaces that this identity may read; None is all of them."""
        if Scope.READ not in self.scopes and Scope.ADMIN not in self.scopes:
            return frozenset()
        return None if self.everywhere else self.namespaces

    @property
    def everywhere(self) -> bool:
        """Whether the scopes hold in all namespaces."""
        return EVERY in self.namespaces

    def may(self, scope: Scope, namespace: str) -> bool:
        """Whether this identity has a scope in a namespace; for the namespace "*", in all of them."""
        return (scope in self.scopes or Scope.ADMIN in self.scopes) and (
            self.everywhere or namespace in self.namespaces
        )

    def check_read(self, adapter: AdapterName) -> None:
        """Raises `NotFoundError`, as for an adapter that is not there: what one may not read does not exist."""
        if not self.may(Scope.READ, adapter.namespace):
            self.denied(Scope.READ, adapter.namespace, str(adapter))
            raise NotFoundError(
                f"no adapter {adapter}; `weft list` shows all{self._hint()}",
                reason="ADAPTER_NOT_FOUND",
                metadata={"adapter": str(adapter), "nearest": ""},
            )

    def check(self, scope: Scope, namespace: str) -> None:
        """Raises `ForbiddenError` (`UnauthenticatedError` for nobody in particular) if this identity has no such scope
        there."""
        if self.may(scope, namespace):
            return
        self.denied(scope, namespace)
        where = "the whole registry" if namespace == EVERY else f"namespace {namespace}"
        if self.name == ANONYMOUS:
            raise UnauthenticatedError(
                f"{scope} in {where} needs a token: `weft login`, or WEFT_TOKEN", metadata={"scope": scope.value}
            )
        raise ForbiddenError(
            f"token {self.name!r} has no scope {scope.value!r} in {where}: ask an administrator for one that has "
            "(`weft token create`)",
            metadata={"scope": scope.value, "namespace": namespace},
        )

    def denied(self, scope: str, namespace: str, subject: str = "") -> None:
        """Has it written down that this identity was refused something. Checks do so themselves."""
        if self.on_denied is not None:
            self.on_denied(self, scope, namespace, subject)

    def _hint(self) -> str:
        return "" if self.scopes else " that you may read; `weft login` names you"


ANONYMOUS = "anonymous"
LOCAL = Principal("local", frozenset(Scope), frozenset({EVERY}))
"""Whoever opens the files themselves."""
NOBODY = Principal(ANONYMOUS, frozenset(), frozenset())
"""A caller without a token, where anonymous reading is off."""


def anonymous_reader(namespaces: Iterable[str] = (EVERY,)) -> Principal:
    """A caller without a token, where anonymous reading is on."""
    return Principal(ANONYMOUS, frozenset({Scope.READ}), frozenset(namespaces))
