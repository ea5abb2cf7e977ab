"""The part of the embedded registry that is about aliases: moves, history, watches, protection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection

from weft_registry.admin_api import ProtectedAlias
from weft_registry.api import Alias, AliasMove
from weft_registry.catalog import alias_history, aliases, audit, protection
from weft_registry.catalog.alias_feed import AliasCursor, AliasFeed
from weft_registry.catalog.database import Catalog
from weft_registry.errors import InvalidInputError
from weft_registry.principal import EVERY, Principal, Scope
from weft_registry.reference import AdapterName, Reference, check_label
from weft_registry.watching import HEARTBEAT_S, EmbeddedAliasWatch


class EmbeddedAliases:
    """What `weft_registry.embedded.EmbeddedRegistry` does with aliases. Owns nothing."""

    _catalog: Catalog
    _feed: AliasFeed
    _principal: Principal

    def set_alias(self, adapter: AdapterName, alias: str, target: str, expected_etag: str = "") -> Alias:
        """See `RegistryApi.set_alias`. Errors as for `SetAlias` in registry.proto."""
        self._check_alias(adapter, alias)
        reference = target_reference(adapter, target)
        with self._catalog.write() as connection:
            return aliases.point(connection, self._principal, adapter, alias, reference, expected_etag)

    def delete_alias(self, adapter: AdapterName, alias: str, expected_etag: str = "") -> str:
        """See `RegistryApi.delete_alias`. Errors as for `DeleteAlias` in registry.proto."""
        self._check_alias(adapter, alias)
        with self._catalog.write() as connection:
            return aliases.remove(connection, self._principal, adapter, alias, expected_etag)

    def rollback_alias(self, adapter: AdapterName, alias: str, expected_etag: str = "", steps: int = 1) -> Alias:
        """See `RegistryApi.rollback_alias`. Errors as for `RollbackAlias` in registry.proto."""
        self._check_alias(adapter, alias)
        with self._catalog.write() as connection:
            return aliases.roll_back(connection, self._principal, adapter, alias, expected_etag, steps)

    def list_alias_moves(self, adapter: AdapterName, alias: str = "", limit: int = 100) -> list[AliasMove]:
        """See `RegistryApi.list_alias_moves`."""
        return self.page_alias_moves(adapter, alias, 0, limit)[0]

    def page_alias_moves(
        self, adapter: AdapterName, alias: str, before: int, limit: int
    ) -> tuple[list[AliasMove], bool]:
        """One page of `list_alias_moves`, and whether there are more: see `alias_history.page_moves`."""
        self._principal.check_read(adapter)
        if alias:
            check_label(alias, "alias")
        with self._catalog.read() as connection:
            return alias_history.page_moves(connection, adapter, alias, before, limit)

    def watch_aliases(
        self, adapters: Sequence[AdapterName] = (), after: int = 0, heartbeat_s: float = HEARTBEAT_S
    ) -> EmbeddedAliasWatch:
        """See `RegistryApi.watch_aliases`. What other processes move is seen within half a second."""
        return EmbeddedAliasWatch(self._feed, self.alias_cursor(adapters, after), heartbeat_s)

    def alias_cursor(self, adapters: Sequence[AdapterName], after: int) -> AliasCursor:
        """A place in the history of what this identity may read; an adapter that it may not, or that is not there,
        never moves. Raises as `AliasCursor`."""
        return AliasCursor(self._feed, self._principal.readable, adapters, after)

    @property
    def alias_feed(self) -> AliasFeed:
        """What wakes up those who wait for moves, for a service that streams them."""
        return self._feed

    def protect_alias(self, namespace: str, name: str, alias: str, token_names: Sequence[str]) -> ProtectedAlias:
        """Says that only administrators and these tokens may move an alias, of one adapter or (an empty `name`) of all
        in the namespace. Raises `PreconditionError` for "latest", `InvalidInputError` for names that are none."""
        self._principal.check(Scope.ADMIN, namespace)
        with self._catalog.write() as connection:
            found = protection.protect(connection, ProtectedAlias(namespace, name, alias, tuple(token_names)))
            detail = {"token_names": list(found.token_names)}
            self._record(connection, "alias.protect", namespace, name, alias, detail)
            return found

    def unprotect_alias(self, namespace: str, name: str, alias: str) -> None:
        """Lets everybody who may move aliases move this one again. Raises `NotFoundError` if it is not protected."""
        self._principal.check(Scope.ADMIN, namespace)
        with self._catalog.write() as connection:
            protection.unprotect(connection, namespace, name, alias)
            self._record(connection, "alias.unprotect", namespace, name, alias, {})

    def protected_aliases(self, namespace: str = "") -> list[ProtectedAlias]:
        """The protections of a namespace; of every one that this identity administers if it is empty."""
        wanted: frozenset[str] | None
        if namespace:
            self._principal.check(Scope.ADMIN, namespace)
            wanted = frozenset({namespace})
        elif Scope.ADMIN in self._principal.scopes:
            wanted = None if self._principal.everywhere else self._principal.namespaces
        else:
            self._principal.check(Scope.ADMIN, EVERY)
            wanted = frozenset()
        with self._catalog.read() as connection:
            return protection.protected_aliases(connection, wanted)

    def _check_alias(self, adapter: AdapterName, alias: str) -> None:
        check_label(alias, "alias")
        if not self._principal.may(Scope.ALIAS, adapter.namespace):
            self._principal.check_read(adapter)
            self._principal.check(Scope.ALIAS, adapter.namespace)

    def _record(
        self, connection: Connection, action: str, namespace: str, name: str, alias: str, detail: Mapping[str, object]
    ) -> None:
        subject = f"{namespace}/{name}:{alias}" if name else f"{namespace}/*:{alias}"
        audit.record(connection, self._principal.name, action, namespace, subject, detail)


def target_reference(adapter: AdapterName, target: str) -> Reference:
    """What `target` means within `adapter`: a tag, an alias, a digest, or a whole reference to the same adapter.

    Raises `InvalidInputError`.
    """
    if "/" not in target:
        separator = "@" if target.startswith("sha256:") else ":"
        target = f"{adapter}{separator}{target}"
    reference = Reference.parse(target)
    if reference.adapter != adapter:
        raise InvalidInputError(f"target: {target[:200]} is not a version of {adapter}")
    return reference
