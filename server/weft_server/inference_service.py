"""The gRPC face of completions: parses, runs, answers. Errors become statuses in the server's interceptor."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from weft import __version__
from weft.v1 import inference_pb2 as pb
from weft.v1 import inference_pb2_grpc as pb_grpc
from weft_registry import canonical
from weft_registry.base import BaseSpec
from weft_registry.principal import NOBODY, Principal
from weft_registry.serve.authentication import caller
from weft_server.completion import Completer, CompletionRequest
from weft_server.engine import EngineInfo
from weft_server.recorder import RequestRecorder
from weft_server.requests import parse_request, stream_message, whole_message

_Context = grpc.aio.ServicerContext[Any, Any]


class InferenceServicer(pb_grpc.InferenceServiceServicer):
    """Answers with the statuses that inference.proto states."""

    def __init__(
        self, completer: Completer, base_name: str, base: BaseSpec, info: EngineInfo, recorder: RequestRecorder
    ) -> None:
        self._completer = completer
        self._recorder = recorder
        self._base_name = base_name
        self._base = base
        self._info = info

    async def Generate(self, request: pb.GenerateRequest, context: _Context) -> pb.GenerateResponse:
        """See inference.proto."""
        with self._recorder.call() as call:
            asked = parse_request(request, self._info.context_length)
            async with aclosing(self._completer.stream(asked, call, _caller(asked))) as stream:
                return whole_message([chunk async for chunk in stream])

    async def GenerateStream(
        self, request: pb.GenerateRequest, context: _Context
    ) -> AsyncIterator[pb.GenerateStreamResponse]:
        """See inference.proto."""
        with self._recorder.call() as call:
            asked = parse_request(request, self._info.context_length)
            async with aclosing(self._completer.stream(asked, call, _caller(asked))) as stream:
                async for chunk in stream:
                    yield stream_message(chunk)

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: _Context) -> pb.GetModelInfoResponse:
        """See inference.proto."""
        info = self._info
        return pb.GetModelInfoResponse(
            base_name=self._base_name,
            base_json=canonical.dumps(self._base.fingerprint.as_json()),
            context_length=info.context_length,
            vocabulary_size=info.vocabulary_size,
            max_batch_size=info.max_batch_size,
            engine=info.name,
            device=info.device,
            dtype=info.dtype,
            kinds=info.kinds,
            mergeable_kinds=info.mergeable_kinds,
            server_version=__version__,
        )


def _caller(asked: CompletionRequest) -> Principal:
    # The base model is for everybody who gets this far, even while nobody can say who they are.
    return caller() if asked.adapters else NOBODY
