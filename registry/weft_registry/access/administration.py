"""What administrators do in a registry that is open in this process: tokens, quotas, the audit log."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from weft_registry.access import audit_log, quotas, tokens
from weft_registry.access.denials import DenialLog
from weft_registry.admin_api import AuditEntry, NewToken, Quota, Token, Usage
from weft_registry.api import Identity
from weft_registry.catalog import audit
from weft_registry.catalog.database import Catalog
from weft_registry.principal import EVERY, Principal, Scope


class Administration:
    """The part of `EmbeddedRegistry` that implements most of `weft_registry.admin_api.RegistryAdminApi`."""

    _catalog: Catalog
    _principal: Principal
    _denials: DenialLog

    def who_am_i(self) -> Identity:
        """See `RegistryApi.who_am_i`."""
        principal = self._principal
        scopes = frozenset(scope.value for scope in principal.scopes)
        return Identity(principal.name, scopes, principal.namespaces, principal.expires_at)

    def note_denied(self, scope: str, subject: str) -> None:
        """Has it written into the audit log that this identity was refused something before it got here."""
        self._principal.denied(scope, EVERY, subject)

    def create_token(
        self, name: str, scopes: Sequence[str], namespaces: Sequence[str], expires_at: datetime | None = None
    ) -> NewToken:
        """See `RegistryAdminApi.create_token`."""
        with self._catalog.write() as connection:
            return tokens.create(connection, self._principal, name, scopes, namespaces, expires_at)

    def list_tokens(self, *, include_ended: bool = False) -> list[Token]:
        """See `RegistryAdminApi.list_tokens`."""
        self._check_administers_something()
        with self._catalog.read() as connection:
            return tokens.listed(connection, self._principal, include_ended=include_ended)

    def revoke_token(self, token: str) -> Token:
        """See `RegistryAdminApi.revoke_token`."""
        self._check_administers_something()
        with self._catalog.write() as connection:
            return tokens.revoke(connection, self._principal, token)

    def usage(self, namespace: str) -> Usage:
        """See `RegistryAdminApi.usage`."""
        self._principal.check(Scope.ADMIN, namespace)
        with self._catalog.read() as connection:
            return quotas.usage(connection, namespace)

    def set_quota(self, quota: Quota) -> Quota:
        """See `RegistryAdminApi.set_quota`."""
        # Not the namespace's own administrators: a limit that those it holds for can lift is none.
        self._principal.check(Scope.ADMIN, EVERY)
        with self._catalog.write() as connection:
            quotas.set_quota(connection, quota)
            limits = {"bytes": quota.max_bytes, "versions": quota.max_versions, "open_uploads": quota.max_open_uploads}
            where = "" if quota.namespace == EVERY else quota.namespace
            audit.record(connection, self._principal.name, "quota.set", where, quota.namespace, limits)
            return quota

    def audit_entries(
        self,
        namespace: str = "",
        *,
        actor: str = "",
        action: str = "",
        since: datetime | None = None,
        limit: int = 100,
    ) -> list[AuditEntry]:
        """See `RegistryAdminApi.audit_entries`."""
        return self.page_audit(namespace, actor, action, since, 0, limit)[0]

    def page_audit(
        self, namespace: str, actor: str, action: str, since: datetime | None, before: int, limit: int
    ) -> tuple[list[AuditEntry], bool]:
        """One page of `audit_entries`, and whether there are more: see `audit_log.page`."""
        if namespace:
            self._principal.check(Scope.ADMIN, namespace)
        else:
            self._check_administers_something()
        if since is not None and since.tzinfo is None:
            since = since.replace(tzinfo=UTC)
        self._denials.flush()
        with self._catalog.read() as connection:
            return audit_log.page(connection, self._principal, namespace, actor, action, since, before, limit)

    def _check_administers_something(self) -> None:
        """Raises as `Principal.check` for whoever is an administrator nowhere."""
        self._principal.check(Scope.ADMIN, min(self._principal.namespaces, default=EVERY))
