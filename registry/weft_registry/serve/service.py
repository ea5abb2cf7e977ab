"""RegistryService over gRPC: messages in, an embedded registry's answers out. Hashing and SQL happen in threads.

Raises `WeftError`s; `weft_registry.wire.status.ErrorInterceptor`, which the server must have, turns them into statuses.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from weft.v1 import registry_pb2 as pb
from weft_registry import digest as digests
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import InvalidInputError, OffsetError
from weft_registry.reference import AdapterName
from weft_registry.serve.ahead import one_ahead
from weft_registry.serve.alias_calls import AliasCalls
from weft_registry.serve.authentication import as_caller
from weft_registry.serve.paging import adapter_token, fitting, page_size, row_token
from weft_registry.wire.chunks import UploadPiece
from weft_registry.wire.messages import (
    MAX_CHUNK_BYTES,
    identity_message,
    query_from,
    signature_message,
    summary_message,
    version_message,
)

MAX_DIGESTS = 1000


class RegistryServicer(AliasCalls):
    """Owns nothing: the registry is closed by whoever opened it. Statuses of each call: see registry.proto."""

    def __init__(self, registry: EmbeddedRegistry) -> None:
        super().__init__()
        self._opened = registry

    @property
    def _registry(self) -> EmbeddedRegistry:
        """The registry, as whoever makes the call may use it."""
        return as_caller(self._opened)

    async def FindMissingBlobs(self, request: pb.FindMissingBlobsRequest, context: Any) -> pb.FindMissingBlobsResponse:
        """See registry.proto."""
        if len(request.digests) > MAX_DIGESTS:
            raise InvalidInputError(f"digests: {len(request.digests)} of them; at most {MAX_DIGESTS} in one call")
        missing = await asyncio.to_thread(self._registry.find_missing, list(request.digests), _adapter(request.adapter))
        return pb.FindMissingBlobsResponse(missing_digests=missing)

    async def StartUpload(self, request: pb.StartUploadRequest, context: Any) -> pb.StartUploadResponse:
        """See registry.proto."""
        state = await asyncio.to_thread(
            self._registry.start_upload, request.digest, request.size_bytes, _adapter(request.adapter)
        )
        return pb.StartUploadResponse(
            upload_id=state.upload_id, committed_size_bytes=state.committed_bytes, complete=state.complete
        )

    # Not of protobuf's types: `weft_registry.serve.chunks` adds it, and `ReadBlob`, to a server.
    async def WriteUpload(  # type: ignore[override]
        self, request_iterator: AsyncIterator[UploadPiece], context: Any
    ) -> pb.WriteUploadResponse:
        """See registry.proto. What was received before a break is on disk."""
        upload_id, state = "", None
        async with aclosing(one_ahead(request_iterator)) as requests:
            async for request in requests:
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
                        self._registry.write_upload, upload_id, request.offset_bytes, request.chunk
                    )
                if request.finish:
                    state = await asyncio.to_thread(self._registry.finish_upload, upload_id)
        if state is None:
            raise InvalidInputError("upload_id: missing: the call sent no message")
        return pb.WriteUploadResponse(committed_size_bytes=state.committed_bytes, complete=state.complete)

    async def QueryUpload(self, request: pb.QueryUploadRequest, context: Any) -> pb.QueryUploadResponse:
        """See registry.proto."""
        state = await asyncio.to_thread(self._registry.query_upload, request.upload_id)
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
        size = page_size(request.page_size)
        found = await asyncio.to_thread(
            self._registry.page_summaries, request.namespace, adapter_token(request.page_token), size + 1
        )
        page = fitting([summary_message(summary) for summary in found[:size]])
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
            row_token(request.page_token),
            page_size(request.page_size),
        )
        page = fitting([version_message(row.version) for row in rows])
        more = more or len(page) < len(rows)
        return pb.ListVersionsResponse(versions=page, next_page_token=str(rows[len(page) - 1].id) if more else "")

    async def ReadBlob(  # type: ignore[override]
        self, request: pb.ReadBlobRequest, context: Any
    ) -> AsyncIterator[bytes]:
        """See registry.proto."""
        if request.offset_bytes < 0 or request.limit_bytes < 0:
            raise OffsetError("offset_bytes and limit_bytes: negative")
        chunks = await asyncio.to_thread(
            self._registry.read_blob,
            digests.check(request.digest),
            request.offset_bytes,
            request.limit_bytes,
            unverified=request.unverified,
        )
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            yield chunk

    async def Yank(self, request: pb.YankRequest, context: Any) -> pb.YankResponse:
        """See registry.proto."""
        version = await asyncio.to_thread(self._registry.yank, request.reference, request.reason)
        return pb.YankResponse(version=version_message(version))

    async def WhoAmI(self, request: pb.WhoAmIRequest, context: Any) -> pb.WhoAmIResponse:
        """See registry.proto."""
        return identity_message(self._registry.who_am_i())

    async def PutSignature(self, request: pb.PutSignatureRequest, context: Any) -> pb.PutSignatureResponse:
        """See registry.proto."""
        kept = await asyncio.to_thread(
            self._registry.put_signature, request.reference, request.key_digest, request.bundle
        )
        return pb.PutSignatureResponse(signature=signature_message(kept))

    async def ListSignatures(self, request: pb.ListSignaturesRequest, context: Any) -> pb.ListSignaturesResponse:
        """See registry.proto."""
        found = await asyncio.to_thread(self._registry.list_signatures, request.reference)
        return pb.ListSignaturesResponse(signatures=[signature_message(signature) for signature in found])

    async def DeleteVersion(self, request: pb.DeleteVersionRequest, context: Any) -> pb.DeleteVersionResponse:
        """See registry.proto."""
        deleted = await asyncio.to_thread(self._registry.delete_version, request.reference)
        return pb.DeleteVersionResponse(version_digest=deleted.digest, freed_bytes=deleted.freed_bytes)

    async def SearchVersions(self, request: pb.SearchVersionsRequest, context: Any) -> pb.SearchVersionsResponse:
        """See registry.proto."""
        found, more = await asyncio.to_thread(
            self._registry.page_search,
            query_from(request),
            request.page_token,
            page_size(request.page_size),
        )
        page = fitting([version_message(each.version) for each in found])
        more = more or len(page) < len(found)
        return pb.SearchVersionsResponse(versions=page, next_page_token=found[len(page) - 1].token if more else "")

    async def VerifyVersion(self, request: pb.VerifyVersionRequest, context: Any) -> pb.VerifyVersionResponse:
        """See registry.proto."""
        report = await asyncio.to_thread(self._registry.verify, request.reference)
        return pb.VerifyVersionResponse(
            version_digest=report.digest,
            checked_files=report.checked_files,
            checked_bytes=report.checked_bytes,
            problems=report.problems,
        )


def _adapter(name: str) -> AdapterName | None:
    return AdapterName.parse(name) if name else None
