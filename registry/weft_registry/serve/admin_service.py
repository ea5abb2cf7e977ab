"""RegistryAdminService over gRPC: messages in, an embedded registry's answers out, as the caller may have them.

Raises `WeftError`s; `weft_registry.wire.status.ErrorInterceptor`, which the server must have, turns them into statuses.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from weft.v1 import registry_admin_pb2 as pb
from weft.v1 import registry_admin_pb2_grpc
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import InvalidInputError
from weft_registry.serve.authentication import as_caller
from weft_registry.wire.admin_messages import (
    entry_message,
    protected_from,
    protected_message,
    quota_from,
    quota_message,
    token_message,
)
from weft_registry.wire.messages import optional_time

MAX_PAGE = 1000
DEFAULT_PAGE = 100
_MAX_PROBLEMS_BYTES = 8 << 20
"""Of a check's last message; a registry in which everything is wrong still gets an answer."""


class RegistryAdminServicer(registry_admin_pb2_grpc.RegistryAdminServiceServicer):
    """Owns nothing: the registry is closed by whoever opened it. Statuses of each call: see registry_admin.proto."""

    def __init__(self, registry: EmbeddedRegistry) -> None:
        self._opened = registry

    @property
    def _registry(self) -> EmbeddedRegistry:
        """The registry, as whoever makes the call may use it."""
        return as_caller(self._opened)

    async def CreateToken(self, request: pb.CreateTokenRequest, context: Any) -> pb.CreateTokenResponse:
        """See registry_admin.proto."""
        made = await asyncio.to_thread(
            self._registry.create_token,
            request.name,
            list(request.scopes),
            list(request.namespaces),
            optional_time(request, "expires_at"),
        )
        return pb.CreateTokenResponse(token=token_message(made.token), secret=made.secret)

    async def ListTokens(self, request: pb.ListTokensRequest, context: Any) -> pb.ListTokensResponse:
        """See registry_admin.proto."""
        registry = self._registry
        tokens = await asyncio.to_thread(lambda: registry.list_tokens(include_ended=request.include_ended))
        return pb.ListTokensResponse(tokens=[token_message(token) for token in tokens])

    async def RevokeToken(self, request: pb.RevokeTokenRequest, context: Any) -> pb.RevokeTokenResponse:
        """See registry_admin.proto."""
        return pb.RevokeTokenResponse(
            token=token_message(await asyncio.to_thread(self._registry.revoke_token, request.token))
        )

    async def GetQuota(self, request: pb.GetQuotaRequest, context: Any) -> pb.GetQuotaResponse:
        """See registry_admin.proto."""
        usage = await asyncio.to_thread(self._registry.usage, request.namespace)
        return pb.GetQuotaResponse(
            quota=quota_message(usage.quota),
            used_bytes=usage.used_bytes,
            used_versions=usage.used_versions,
            open_uploads=usage.open_uploads,
        )

    async def SetQuota(self, request: pb.SetQuotaRequest, context: Any) -> pb.SetQuotaResponse:
        """See registry_admin.proto."""
        quota = await asyncio.to_thread(self._registry.set_quota, quota_from(request.quota))
        return pb.SetQuotaResponse(quota=quota_message(quota))

    async def ProtectAlias(self, request: pb.ProtectAliasRequest, context: Any) -> pb.ProtectAliasResponse:
        """See registry_admin.proto."""
        wanted = protected_from(request.alias)
        protected = await asyncio.to_thread(
            self._registry.protect_alias, wanted.namespace, wanted.name, wanted.alias, wanted.token_names
        )
        return pb.ProtectAliasResponse(alias=protected_message(protected))

    async def UnprotectAlias(self, request: pb.UnprotectAliasRequest, context: Any) -> pb.UnprotectAliasResponse:
        """See registry_admin.proto."""
        await asyncio.to_thread(self._registry.unprotect_alias, request.namespace, request.name, request.alias)
        return pb.UnprotectAliasResponse()

    async def ListProtectedAliases(
        self, request: pb.ListProtectedAliasesRequest, context: Any
    ) -> pb.ListProtectedAliasesResponse:
        """See registry_admin.proto."""
        aliases = await asyncio.to_thread(self._registry.protected_aliases, request.namespace)
        return pb.ListProtectedAliasesResponse(aliases=[protected_message(alias) for alias in aliases])

    async def ListAuditEntries(self, request: pb.ListAuditEntriesRequest, context: Any) -> pb.ListAuditEntriesResponse:
        """See registry_admin.proto. The page token is the entry that the next page begins before."""
        if not 0 <= request.page_size <= MAX_PAGE:
            raise InvalidInputError(
                f"page_size: {request.page_size}; from 0 (which means {DEFAULT_PAGE}) to {MAX_PAGE}"
            )
        entries, more = await asyncio.to_thread(
            self._registry.page_audit,
            request.namespace,
            request.actor,
            request.action,
            optional_time(request, "since"),
            _before(request.page_token),
            request.page_size or DEFAULT_PAGE,
        )
        return pb.ListAuditEntriesResponse(
            entries=[entry_message(entry) for entry in entries],
            next_page_token=str(entries[-1].sequence) if more else "",
        )

    async def CollectGarbage(self, request: pb.CollectGarbageRequest, context: Any) -> pb.CollectGarbageResponse:
        """See registry_admin.proto."""
        registry = self._registry
        options: dict[str, float] = {}
        if request.HasField("grace_seconds"):
            options["grace_s"] = request.grace_seconds
        report = await asyncio.to_thread(lambda: registry.collect_garbage(dry_run=request.dry_run, **options))
        return pb.CollectGarbageResponse(
            removed_blobs=report.removed_blobs,
            removed_bytes=report.removed_bytes,
            kept_blobs=report.kept_blobs,
            dropped_uploads=report.dropped_uploads,
        )

    async def CheckRegistry(
        self, request: pb.CheckRegistryRequest, context: Any
    ) -> AsyncIterator[pb.CheckRegistryResponse]:
        """See registry_admin.proto."""
        progress = await asyncio.to_thread(self._registry.check)
        while (step := await asyncio.to_thread(next, progress, None)) is not None:
            yield pb.CheckRegistryResponse(
                checked_versions=step.checked_versions,
                total_versions=step.total_versions,
                checked_bytes=step.checked_bytes,
                problems=_fitting(step.problems) if step.done else (),
                done=step.done,
            )


def _before(token: str) -> int:
    if token and not (token.isascii() and token.isdecimal() and len(token) < 19):
        raise InvalidInputError(f"page_token: {token[:80]!r} is not one that this registry gave")
    return int(token or 0)


def _fitting(problems: tuple[str, ...]) -> list[str]:
    """The problems that one message holds, and how many more there are."""
    size, kept = 0, list[str]()
    for problem in problems:
        size += len(problem.encode())
        if size > _MAX_PROBLEMS_BYTES:
            return [*kept, f"and {len(problems) - len(kept)} more: `weft registry check` on its machine names all"]
        kept.append(problem)
    return kept
