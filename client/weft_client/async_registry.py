"""The asyncio registry client: `weft_client.registry.RegistryClient`, method for method, in threads.

Uploads read files and downloads hash them, so most of the work is blocking in any case.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from weft_client.registry import RegistryClient
from weft_registry.api import (
    AdapterSummary,
    Alias,
    AliasMove,
    AliasNews,
    Deleted,
    Identity,
    Progress,
    Published,
    Signature,
    VerifyReport,
    Version,
    VersionQuery,
)
from weft_registry.reference import AdapterName


class AsyncRegistryClient:
    """`RegistryClient` for asyncio.

    A task that is cancelled stops waiting at once; the call in its thread ends by itself. `progress` is called in
    that thread.
    """

    def __init__(
        self,
        target: str | None = None,
        timeout_s: float | None = None,
        transfer_timeout_s: float | None = None,
        token: str | None = None,
    ) -> None:
        self._client = RegistryClient(target, timeout_s, transfer_timeout_s, token)
        self.target = self._client.target

    @property
    def stale_note(self) -> str | None:
        """See `RegistryClient.stale_note`."""
        return self._client.stale_note

    async def push(
        self,
        directory: Path | str,
        adapter: AdapterName | str,
        *,
        tags: Sequence[str] = (),
        aliases: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Published:
        """See `RegistryClient.push`."""
        return await asyncio.to_thread(
            self._client.push, directory, adapter, tags=tags, aliases=aliases, progress=progress
        )

    async def pull(self, reference: str | Version, directory: Path | str, progress: Progress | None = None) -> Version:
        """See `RegistryClient.pull`."""
        return await asyncio.to_thread(self._client.pull, reference, directory, progress)

    async def find_missing(self, digests: Sequence[str], adapter: AdapterName | None = None) -> list[str]:
        """See `RegistryApi.find_missing`."""
        return await asyncio.to_thread(self._client.find_missing, digests, adapter)

    async def upload(
        self,
        path: Path,
        digest: str,
        size_bytes: int,
        progress: Progress | None = None,
        adapter: AdapterName | None = None,
    ) -> None:
        """See `RegistryApi.upload`."""
        await asyncio.to_thread(self._client.upload, path, digest, size_bytes, progress, adapter)

    async def publish(
        self,
        adapter: AdapterName,
        manifest_bytes: bytes,
        *,
        tags: Sequence[str] = (),
        aliases: Sequence[str] = (),
        request_id: str = "",
    ) -> Published:
        """See `RegistryApi.publish`."""
        return await asyncio.to_thread(
            self._client.publish, adapter, manifest_bytes, tags=tags, aliases=aliases, request_id=request_id
        )

    async def resolve(self, reference: str) -> Version:
        """See `RegistryApi.resolve`."""
        return await asyncio.to_thread(self._client.resolve, reference)

    async def list_adapters(self, namespace: str = "") -> list[AdapterSummary]:
        """See `RegistryApi.list_adapters`."""
        return await asyncio.to_thread(self._client.list_adapters, namespace)

    async def list_versions(self, adapter: AdapterName, *, include_yanked: bool = False) -> list[Version]:
        """See `RegistryApi.list_versions`."""
        return await asyncio.to_thread(self._client.list_versions, adapter, include_yanked=include_yanked)

    async def read_blob(
        self, digest: str, offset: int = 0, limit: int = 0, *, unverified: bool = False
    ) -> AsyncGenerator[bytes]:
        """See `RegistryApi.read_blob`."""
        chunks = self._client.read_blob(digest, offset, limit, unverified=unverified)
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            yield chunk

    async def set_alias(self, adapter: AdapterName, alias: str, target: str, expected_etag: str = "") -> Alias:
        """See `RegistryApi.set_alias`."""
        return await asyncio.to_thread(self._client.set_alias, adapter, alias, target, expected_etag)

    async def delete_alias(self, adapter: AdapterName, alias: str, expected_etag: str = "") -> str:
        """See `RegistryApi.delete_alias`."""
        return await asyncio.to_thread(self._client.delete_alias, adapter, alias, expected_etag)

    async def rollback_alias(self, adapter: AdapterName, alias: str, expected_etag: str = "", steps: int = 1) -> Alias:
        """See `RegistryApi.rollback_alias`."""
        return await asyncio.to_thread(self._client.rollback_alias, adapter, alias, expected_etag, steps)

    async def list_alias_moves(self, adapter: AdapterName, alias: str = "", limit: int = 100) -> list[AliasMove]:
        """See `RegistryApi.list_alias_moves`."""
        return await asyncio.to_thread(self._client.list_alias_moves, adapter, alias, limit)

    async def watch_aliases(self, adapters: Sequence[AdapterName] = (), after: int = 0) -> AsyncGenerator[AliasNews]:
        """See `RegistryApi.watch_aliases`. Closing the generator ends the watch."""
        watch = self._client.watch_aliases(adapters, after)
        try:
            while (news := await asyncio.to_thread(next, watch, None)) is not None:
                yield news
        finally:
            watch.close()

    async def yank(self, reference: str, reason: str = "") -> Version:
        """See `RegistryApi.yank`."""
        return await asyncio.to_thread(self._client.yank, reference, reason)

    async def delete_version(self, reference: str) -> Deleted:
        """See `RegistryApi.delete_version`."""
        return await asyncio.to_thread(self._client.delete_version, reference)

    async def search_versions(self, query: VersionQuery) -> list[Version]:
        """See `RegistryApi.search_versions`."""
        return await asyncio.to_thread(self._client.search_versions, query)

    async def put_signature(self, reference: str, key_digest: str, bundle: bytes) -> Signature:
        """See `RegistryApi.put_signature`."""
        return await asyncio.to_thread(self._client.put_signature, reference, key_digest, bundle)

    async def list_signatures(self, reference: str) -> list[Signature]:
        """See `RegistryApi.list_signatures`."""
        return await asyncio.to_thread(self._client.list_signatures, reference)

    async def verify(self, reference: str) -> VerifyReport:
        """See `RegistryApi.verify`."""
        return await asyncio.to_thread(self._client.verify, reference)

    async def who_am_i(self) -> Identity:
        """See `RegistryApi.who_am_i`."""
        return await asyncio.to_thread(self._client.who_am_i)

    async def close(self) -> None:
        """Closes the channel; calls still running are cancelled."""
        await asyncio.to_thread(self._client.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
