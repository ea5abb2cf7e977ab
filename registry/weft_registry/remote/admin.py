"""The administration of a registry at the other end of a channel. Implements `RegistryAdminApi`.

No call is repeated by itself: a token that was made twice is worse than an error.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

import grpc

from weft.v1 import registry_admin_pb2 as pb
from weft.v1 import registry_admin_pb2_grpc
from weft_registry.admin_api import (
    AuditEntry,
    CheckProgress,
    GarbageReport,
    NewToken,
    ProtectedAlias,
    Quota,
    Token,
    Usage,
)
from weft_registry.remote.registry import answered_by
from weft_registry.wire.admin_messages import (
    entry_from,
    protected_from,
    protected_message,
    quota_from,
    quota_message,
    token_from,
    usage_from,
)
from weft_registry.wire.channel import open_channel
from weft_registry.wire.login import token_for
from weft_registry.wire.messages import MAX_MESSAGE_BYTES, timestamp

_OPTIONS = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.enable_http_proxy", 0)]
_PAGE = 1000


class RemoteAdmin:
    """Owns one channel to `target` ("HOST:PORT", or "grpcs://HOST:PORT" over TLS). Thread-safe."""

    def __init__(
        self, target: str, timeout_s: float = 60.0, transfer_timeout_s: float = 3600.0, token: str | None = None
    ) -> None:
        """As `RemoteRegistry`; `transfer_timeout_s` bounds collections and checks."""
        self._target, self._timeout_s, self._transfer_timeout_s = target, timeout_s, transfer_timeout_s
        self._channel = open_channel(target, _OPTIONS, token_for(target, token))
        self._stub = registry_admin_pb2_grpc.RegistryAdminServiceStub(self._channel)

    def create_token(
        self, name: str, scopes: Sequence[str], namespaces: Sequence[str], expires_at: datetime | None = None
    ) -> NewToken:
        """See `RegistryAdminApi.create_token`."""
        request = pb.CreateTokenRequest(
            name=name,
            scopes=scopes,
            namespaces=namespaces,
            expires_at=None if expires_at is None else timestamp(expires_at),
        )
        with self._errors():
            answer = self._stub.CreateToken(request, timeout=self._timeout_s)
        return NewToken(token_from(answer.token), answer.secret)

    def list_tokens(self, *, include_ended: bool = False) -> list[Token]:
        """See `RegistryAdminApi.list_tokens`."""
        with self._errors():
            answer = self._stub.ListTokens(pb.ListTokensRequest(include_ended=include_ended), timeout=self._timeout_s)
        return [token_from(token) for token in answer.tokens]

    def revoke_token(self, token: str) -> Token:
        """See `RegistryAdminApi.revoke_token`."""
        with self._errors():
            return token_from(self._stub.RevokeToken(pb.RevokeTokenRequest(token=token), timeout=self._timeout_s).token)

    def usage(self, namespace: str) -> Usage:
        """See `RegistryAdminApi.usage`."""
        with self._errors():
            return usage_from(self._stub.GetQuota(pb.GetQuotaRequest(namespace=namespace), timeout=self._timeout_s))

    def set_quota(self, quota: Quota) -> Quota:
        """See `RegistryAdminApi.set_quota`."""
        request = pb.SetQuotaRequest(quota=quota_message(quota))
        with self._errors():
            return quota_from(self._stub.SetQuota(request, timeout=self._timeout_s).quota)

    def protect_alias(self, namespace: str, name: str, alias: str, token_names: Sequence[str]) -> ProtectedAlias:
        """See `RegistryAdminApi.protect_alias`."""
        wanted = protected_message(ProtectedAlias(namespace, name, alias, token_names))
        with self._errors():
            return protected_from(
                self._stub.ProtectAlias(pb.ProtectAliasRequest(alias=wanted), timeout=self._timeout_s).alias
            )

    def unprotect_alias(self, namespace: str, name: str, alias: str) -> None:
        """See `RegistryAdminApi.unprotect_alias`."""
        request = pb.UnprotectAliasRequest(namespace=namespace, name=name, alias=alias)
        with self._errors():
            self._stub.UnprotectAlias(request, timeout=self._timeout_s)

    def protected_aliases(self, namespace: str) -> list[ProtectedAlias]:
        """See `RegistryAdminApi.protected_aliases`."""
        request = pb.ListProtectedAliasesRequest(namespace=namespace)
        with self._errors():
            answer = self._stub.ListProtectedAliases(request, timeout=self._timeout_s)
        return [protected_from(alias) for alias in answer.aliases]

    def audit_entries(
        self,
        namespace: str = "",
        *,
        actor: str = "",
        action: str = "",
        since: datetime | None = None,
        limit: int = 100,
    ) -> list[AuditEntry]:
        """See `RegistryAdminApi.audit_entries`. Reads as many pages as that takes."""
        request = pb.ListAuditEntriesRequest(
            namespace=namespace, actor=actor, action=action, since=None if since is None else timestamp(since)
        )
        found: list[AuditEntry] = []
        while len(found) < limit:
            request.page_size = min(_PAGE, limit - len(found))
            with self._errors():
                answer = self._stub.ListAuditEntries(request, timeout=self._timeout_s)
            found += [entry_from(entry) for entry in answer.entries]
            if not answer.next_page_token:
                break
            request.page_token = answer.next_page_token
        return found

    def collect_garbage(self, *, dry_run: bool = False, grace_s: float = 3600.0) -> GarbageReport:
        """See `RegistryAdminApi.collect_garbage`."""
        request = pb.CollectGarbageRequest(dry_run=dry_run, grace_seconds=grace_s)
        with self._errors():
            answer = self._stub.CollectGarbage(request, timeout=self._transfer_timeout_s)
        return GarbageReport(answer.removed_blobs, answer.removed_bytes, answer.kept_blobs, answer.dropped_uploads)

    def check(self) -> Iterator[CheckProgress]:
        """See `RegistryAdminApi.check`."""
        with self._errors():
            for step in self._stub.CheckRegistry(pb.CheckRegistryRequest(), timeout=self._transfer_timeout_s):
                yield CheckProgress(
                    step.checked_versions, step.total_versions, step.checked_bytes, tuple(step.problems), step.done
                )

    def close(self) -> None:
        """See `RegistryAdminApi.close`."""
        self._channel.close()

    @contextmanager
    def _errors(self) -> Generator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise answered_by(self._target, error) from error
