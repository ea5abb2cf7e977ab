"""RegistryService over gRPC: messages in, an embedded registry's answers out. Hashing and SQL happen in threads.

Raises `WeftError`s; `weft_registry.status.ErrorInterceptor`, which the server must have, turns them into statuses.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeVar

from google.protobuf.message import Message

from weft.v1 import registry_pb2 as pb
from weft.v1 import registry_pb2_grpc
from weft_registry import digest as digests
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import InvalidInputError, OffsetError
from weft_registry.messages import MAX_CHUNK_BYTES, alias_message, summary_message, version_message
from weft_registry.reference import AdapterName

MAX_DIGESTS = 1000
MAX_PAGE = 1000
DEFAULT_PAGE = 100
_PAGE_BYTES = 4 << 20
"""A page ends early when its manifests grow beyond this, so that no answer outgrows what a client receives."""

MessageT = TypeVar("MessageT", bound=Message)


class RegistryServicer(registry_pb2_grpc.RegistryServiceServicer):
    """Owns nothing: the registry is closed by whoever opened it. Statuses of each call: see registry.proto."""

    def __init__(self, registry: EmbeddedRegistry) -> None:
        self._registry = registry

    async def FindMissingBlobs(self, request: pb.FindMissingBlobsRequest, context: Any) -> pb.FindMissingBlobsResponse:
        """See registry.proto."""
        if len(request.digests) > MAX_DIGESTS:
            raise InvalidInputError(f"digests: {len(request.digests)} of them; at most {MAX_DIGESTS} in one call")
        missing = await asyncio.to_thread(self._registry.find_missing, list(request.digests))
        return pb.FindMissingBlobsResponse(missing_digests=missing)

    async def StartUpload(self, request: pb.StartUploadRequest, context: Any) -> pb.StartUploadResponse:
        """See registry.proto."""
        state = await asyncio.to_thread(self._registry.blobs.start_upload, request.digest, request.size_bytes)
        return pb.StartUploadResponse(
            upload_id=state.upload_id, committed_size_bytes=state.committed_bytes, complete=state.complete
        )

    async def WriteUpload(
        self, request_iterator: AsyncIterator[pb.WriteUploadRequest], context: Any
    ) -> pb.WriteUploadResponse:
        """See registry.proto. What was received before a break is on disk."""
        upload_id, state = "", None
        async for request in request_iterator:
            if request.upload_id and upload_id and request.upload_id != upload_id:
                raise InvalidInputError("upload_id: one call writes one upload")
            upload_id = upload_id or request.upload_id
            if not upload_id:
                raise InvalidInputError("upload_id: missing in the first message")
            if state is not None and state.complete:
                raise InvalidInputError("finish: nothing may follow the message that finishes the upload")
            if len(request.chunk) > MAX_CHUNK_BYTES:
                raise InvalidInputError(f"chunk: {len(request.chunk)} bytes; at most {MAX_CHUNK_BYTES}")
            if request.chunk or not request.finish:
                state = await asyncio.to_thread(
                    self._registry.blobs.write_upload, upload_id, request.offset_bytes, request.chunk
                )
            if request.finish:
                state = await asyncio.to_thread(self._registry.blobs.finish_upload, upload_id)
        if state is None:
            raise InvalidInputError("upload_id: missing: the call sent no message")
        return pb.WriteUploadResponse(committed_size_bytes=state.committed_bytes, complete=state.complete)

    async def QueryUpload(self, request: pb.QueryUploadRequest, context: Any) -> pb.QueryUploadResponse:
        """See registry.proto."""
        state = await asyncio.to_thread(self._registry.blobs.query_upload, request.upload_id)
        return pb.QueryUploadResponse(committed_size_bytes=state.committed_bytes, size_bytes=state.size_bytes)

    async def Publish(self, request: pb.PublishRequest, context: Any) -> pb.PublishResponse:
        """See registry.proto."""
        published = await asyncio.to_thread(
            self._registry.publish,
            AdapterName.parse(request.adapter),
            request.manifest_json,
            tags=list(request.tags),
            aliases=list(request.aliases),
            request_id=request.request_id,
        )
        return pb.PublishResponse(version=version_message(published.version), existing=published.existing)

    async def Resolve(self, request: pb.ResolveRequest, context: Any) -> pb.ResolveResponse:
        """See registry.proto."""
        version = await asyncio.to_thread(self._registry.resolve, request.reference)
        return pb.ResolveResponse(version=version_message(version))

    async def ListAdapters(self, request: pb.ListAdaptersRequest, context: Any) -> pb.ListAdaptersResponse:
        """See registry.proto. The page token is the name of the last adapter."""
        size = _page_size(request.page_size)
        found = await asyncio.to_thread(
            self._registry.page_adapters, request.namespace, _adapter_token(request.page_token), size + 1
        )
        page = _fitting([summary_message(summary) for summary in found[:size]])
        more = len(found) > len(page)
        return pb.ListAdaptersResponse(
            adapters=page, next_page_token=f"{page[-1].namespace}/{page[-1].name}" if more else ""
        )

    async def ListVersions(self, request: pb.ListVersionsRequest, context: Any) -> pb.ListVersionsResponse:
        """See registry.proto. The page token is the row that the next page begins before."""
        rows, more = await asyncio.to_thread(
            self._registry.page_versions,
            AdapterName.parse(request.adapter),
            request.include_yanked,
            _version_token(request.page_token),
            _page_size(request.page_size),
        )
        page = _fitting([version_message(row.version) for row in rows])
        more = more or len(page) < len(rows)
        return pb.ListVersionsResponse(versions=page, next_page_token=str(rows[len(page) - 1].id) if more else "")

    async def ReadBlob(self, request: pb.ReadBlobRequest, context: Any) -> AsyncIterator[pb.ReadBlobResponse]:
        """See registry.proto."""
        if request.offset_bytes < 0 or request.limit_bytes < 0:
            raise OffsetError("offset_bytes and limit_bytes: negative")
        chunks = await asyncio.to_thread(
            self._registry.read_blob, digests.check(request.digest), request.offset_bytes, request.limit_bytes
        )
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            yield pb.ReadBlobResponse(chunk=chunk)

    async def SetAlias(self, request: pb.SetAliasRequest, context: Any) -> pb.SetAliasResponse:
        """See registry.proto."""
        alias = await asyncio.to_thread(
            self._registry.set_alias,
            AdapterName.parse(request.adapter),
            request.alias,
            request.target,
            request.expected_etag,
        )
        return pb.SetAliasResponse(alias=alias_message(alias))

    async def Yank(self, request: pb.YankRequest, context: Any) -> pb.YankResponse:
        """See registry.proto."""
        version = await asyncio.to_thread(self._registry.yank, request.reference, request.reason)
        return pb.YankResponse(version=version_message(version))

    async def VerifyVersion(self, request: pb.VerifyVersionRequest, context: Any) -> pb.VerifyVersionResponse:
        """See registry.proto."""
        report = await asyncio.to_thread(self._registry.verify, request.reference)
        return pb.VerifyVersionResponse(
            version_digest=report.digest,
            checked_files=report.checked_files,
            checked_bytes=report.checked_bytes,
            problems=report.problems,
        )


def _page_size(asked: int) -> int:
    if asked < 0 or asked > MAX_PAGE:
        raise InvalidInputError(f"page_size: {asked}; from 0 (which means {DEFAULT_PAGE}) to {MAX_PAGE}")
    return asked or DEFAULT_PAGE


def _adapter_token(token: str) -> str:
    if token:
        try:
            AdapterName.parse(token)
        except InvalidInputError as error:
            raise InvalidInputError(f"page_token: {token[:80]!r} is not one that this registry gave") from error
    return token


def _version_token(token: str) -> int:
    if token and not (token.isascii() and token.isdecimal() and len(token) < 19):
        raise InvalidInputError(f"page_token: {token[:80]!r} is not one that this registry gave")
    return int(token or 0)


def _fitting(messages: Sequence[MessageT]) -> list[MessageT]:
    """The first messages that together stay below `_PAGE_BYTES`; always at least one, if there is one."""
    page: list[MessageT] = []
    size = 0
    for message in messages:
        size += message.ByteSize()
        if page and size > _PAGE_BYTES:
            break
        page.append(message)
    return page
