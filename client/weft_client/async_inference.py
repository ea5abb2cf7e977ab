"""The asyncio inference client: `weft_client.inference.InferenceClient`, method for method."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from weft.v1 import inference_pb2 as pb
from weft.v1.inference_pb2_grpc import AdapterAdminServiceStub, InferenceServiceStub
from weft_client import messages as wire
from weft_client.channel import OPTIONS, CallDefaults, errors_from, server_address, with_token
from weft_client.results import Chunk, Completion, Merge, ModelInfo, Residency, Resident, Unmerge
from weft_client.stats import ServerStats
from weft_client.stats_messages import parse_stats
from weft_registry.wire.channel import open_async_channel

AnswerT = TypeVar("AnswerT")


class AsyncInferenceClient:
    """`InferenceClient` for asyncio. Construct it, and use it, inside one running event loop.

    Cancelling the task that awaits a call cancels the request at the server.
    """

    def __init__(
        self,
        target: str | None = None,
        timeout_s: float | None = None,
        *,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.target = server_address(target)
        self._defaults = CallDefaults(timeout_s, with_token(self.target, metadata))
        self._channel = open_async_channel(self.target, OPTIONS)
        self._inference = InferenceServiceStub(self._channel)
        self._admin = AdapterAdminServiceStub(self._channel)

    async def generate(
        self,
        prompt: str | None = None,
        adapter: wire.Worn = "",
        *,
        messages: wire.Messages | None = None,
        token_ids: Sequence[int] | None = None,
        timeout_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
        **options: Unpack[wire.GenerateOptions],
    ) -> Completion:
        """See `InferenceClient.generate`."""
        request = wire.generate_request(prompt, adapter, messages, token_ids, options)
        return wire.parse_completion(await self._call(self._inference.Generate, request, timeout_s, metadata))

    def stream(
        self,
        prompt: str | None = None,
        adapter: wire.Worn = "",
        *,
        messages: wire.Messages | None = None,
        token_ids: Sequence[int] | None = None,
        timeout_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
        **options: Unpack[wire.GenerateOptions],
    ) -> AsyncGenerator[Chunk]:
        """See `InferenceClient.stream`. After a `break`, close the iterator (`contextlib.aclosing`) to cancel at once.

        Python closes an abandoned asynchronous iterator only when it gets round to it.
        """
        request = wire.generate_request(prompt, adapter, messages, token_ids, options)
        return self._chunks(request, timeout_s, metadata)

    async def model_info(self, *, timeout_s: float | None = None) -> ModelInfo:
        """See `InferenceClient.model_info`."""
        answer = await self._call(self._inference.GetModelInfo, pb.GetModelInfoRequest(), timeout_s)
        return wire.parse_model_info(answer)

    async def resident(self, *, include_disk: bool = False, timeout_s: float | None = None) -> Residency:
        """See `InferenceClient.resident`."""
        request = pb.ListResidentRequest(include_disk=include_disk)
        return wire.parse_residency(await self._call(self._admin.ListResident, request, timeout_s))

    async def load(self, reference: str, *, timeout_s: float | None = None) -> Resident:
        """See `InferenceClient.load`."""
        answer = await self._call(self._admin.Load, pb.LoadRequest(reference=reference), timeout_s)
        return wire.parse_resident(answer.adapter)

    async def unload(self, reference: str, *, timeout_s: float | None = None) -> int:
        """See `InferenceClient.unload`."""
        answer = await self._call(self._admin.Unload, pb.UnloadRequest(reference=reference), timeout_s)
        return answer.freed_bytes

    async def merge(self, reference: str, *, timeout_s: float | None = None) -> Merge:
        """See `InferenceClient.merge`."""
        return wire.parse_merge(await self._call(self._admin.Merge, pb.MergeRequest(reference=reference), timeout_s))

    async def unmerge(self, *, timeout_s: float | None = None) -> Unmerge:
        """See `InferenceClient.unmerge`."""
        return wire.parse_unmerge(await self._call(self._admin.Unmerge, pb.UnmergeRequest(), timeout_s))

    async def stats(self, *, timeout_s: float | None = None) -> ServerStats:
        """See `InferenceClient.stats`."""
        return parse_stats(await self._call(self._admin.GetStats, pb.GetStatsRequest(), timeout_s))

    async def close(self) -> None:
        """Closes the channel; calls still running are cancelled."""
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(
        self,
        method: Callable[..., Awaitable[AnswerT]],
        request: Any,
        timeout_s: float | None,
        metadata: Mapping[str, str] | None = None,
    ) -> AnswerT:
        with errors_from(self.target):
            return await method(request, **self._defaults.keywords(timeout_s, metadata))

    async def _chunks(
        self, request: pb.GenerateRequest, timeout_s: float | None, metadata: Mapping[str, str] | None
    ) -> AsyncGenerator[Chunk]:
        call = self._inference.GenerateStream(request, **self._defaults.keywords(timeout_s, metadata))
        last: Chunk | None = None
        try:
            with errors_from(self.target):
                async for message in call:
                    last = wire.parse_chunk(message)
                    yield last
            wire.ended(last)
        finally:
            call.cancel()
