"""The synchronous inference client."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from weft.v1 import inference_pb2 as pb
from weft.v1.inference_pb2_grpc import AdapterAdminServiceStub, InferenceServiceStub
from weft_client import messages as wire
from weft_client.channel import OPTIONS, CallDefaults, errors_from, server_address, with_token
from weft_client.results import Chunk, Completion, Merge, ModelInfo, Residency, Resident, Unmerge
from weft_client.stats import ServerStats
from weft_client.stats_messages import parse_stats
from weft_registry.wire.channel import open_channel

AnswerT = TypeVar("AnswerT")


class InferenceClient:
    """Completions and adapter administration of one server. Owns its channel; safe to use from several threads.

    `target` is HOST:PORT (default: WEFT_SERVER, or 127.0.0.1:50051). `timeout_s` is the deadline of every call that
    names none of its own. `metadata` goes with every call: `authorization` (by default WEFT_TOKEN, or what
    `weft login` stored for `target`), `x-correlation-id`, `traceparent`.

    Every method raises the errors of `weft_registry.errors`, with the statuses that inference.proto states.
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
        self._channel = open_channel(self.target, OPTIONS)
        self._inference = InferenceServiceStub(self._channel)
        self._admin = AdapterAdminServiceStub(self._channel)

    def generate(
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
        """The whole completion of a prompt, a chat or token ids.

        `adapter` is a reference, or empty for the base model, or several adapters worn together:
        `["acme/topics", ("acme/style", 0.5)]`, or `"acme/topics+acme/style*0.5"`.
        """
        request = wire.generate_request(prompt, adapter, messages, token_ids, options)
        return wire.parse_completion(self._call(self._inference.Generate, request, timeout_s, metadata))

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
    ) -> Generator[Chunk]:
        """The completion as it is generated; the last chunk carries the summary.

        The call is made when the first chunk is asked for. Closing the iterator, or dropping it, cancels the request
        at the server. `Completion.from_chunks` puts a whole stream together.
        """
        request = wire.generate_request(prompt, adapter, messages, token_ids, options)
        return self._chunks(request, timeout_s, metadata)

    def model_info(self, *, timeout_s: float | None = None) -> ModelInfo:
        """The base model, and what the engine serves."""
        return wire.parse_model_info(self._call(self._inference.GetModelInfo, pb.GetModelInfoRequest(), timeout_s))

    def resident(self, *, include_disk: bool = False, timeout_s: float | None = None) -> Residency:
        """Every adapter in the server's memory, and with `include_disk` those that are pulled and not in memory."""
        request = pb.ListResidentRequest(include_disk=include_disk)
        return wire.parse_residency(self._call(self._admin.ListResident, request, timeout_s))

    def load(self, reference: str, *, timeout_s: float | None = None) -> Resident:
        """Brings an adapter, or several worn together (`a+b*0.5`), into memory before the first request."""
        return wire.parse_resident(self._call(self._admin.Load, pb.LoadRequest(reference=reference), timeout_s).adapter)

    def unload(self, reference: str, *, timeout_s: float | None = None) -> int:
        """Frees an adapter, and lifts its quarantine. Returns the bytes freed."""
        return self._call(self._admin.Unload, pb.UnloadRequest(reference=reference), timeout_s).freed_bytes

    def merge(self, reference: str, *, timeout_s: float | None = None) -> Merge:
        """Serves one adapter, or several worn together (`a+b*0.5`), from merged weights, in place of any other."""
        return wire.parse_merge(self._call(self._admin.Merge, pb.MergeRequest(reference=reference), timeout_s))

    def unmerge(self, *, timeout_s: float | None = None) -> Unmerge:
        """Drops the merged weights."""
        return wire.parse_unmerge(self._call(self._admin.Unmerge, pb.UnmergeRequest(), timeout_s))

    def stats(self, *, timeout_s: float | None = None) -> ServerStats:
        """What the server has done since it started, and what it holds now."""
        return parse_stats(self._call(self._admin.GetStats, pb.GetStatsRequest(), timeout_s))

    def close(self) -> None:
        """Closes the channel; calls still running are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(
        self,
        method: Callable[..., AnswerT],
        request: Any,
        timeout_s: float | None,
        metadata: Mapping[str, str] | None = None,
    ) -> AnswerT:
        with errors_from(self.target):
            return method(request, **self._defaults.keywords(timeout_s, metadata))

    def _chunks(
        self, request: pb.GenerateRequest, timeout_s: float | None, metadata: Mapping[str, str] | None
    ) -> Generator[Chunk]:
        call = self._inference.GenerateStream(request, **self._defaults.keywords(timeout_s, metadata))
        last: Chunk | None = None
        try:
            with errors_from(self.target):
                for message in call:
                    last = wire.parse_chunk(message)
                    yield last
            wire.ended(last)
        finally:
            call.cancel()  # type: ignore[no-untyped-call]  # grpc-stubs leave it untyped
