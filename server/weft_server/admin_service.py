"""The gRPC face of residency: what is in memory, and what is merged."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from weft.v1 import inference_pb2 as pb
from weft.v1 import inference_pb2_grpc as pb_grpc
from weft_server.engine import Engine
from weft_server.residency import Residency, Resident

_Context = grpc.aio.ServicerContext[Any, Any]


class AdapterAdminServicer(pb_grpc.AdapterAdminServiceServicer):
    """Answers with the statuses that inference.proto states."""

    def __init__(self, residency: Residency, engine: Engine, overlay_limit_bytes: int) -> None:
        self._residency = residency
        self._engine = engine
        self._overlay_limit_bytes = overlay_limit_bytes

    async def ListResident(self, request: pb.ListResidentRequest, context: _Context) -> pb.ListResidentResponse:
        """See inference.proto."""
        return pb.ListResidentResponse(
            adapters=[_message(resident) for resident in self._residency.resident()],
            resident_bytes=self._residency.resident_bytes,
            limit_bytes=self._residency.limit_bytes,
            overlay_bytes=self._engine.overlay_bytes,
            overlay_limit_bytes=self._overlay_limit_bytes,
        )

    async def Load(self, request: pb.LoadRequest, context: _Context) -> pb.LoadResponse:
        """See inference.proto."""
        return pb.LoadResponse(adapter=_message(await self._residency.load(request.reference)))

    async def Unload(self, request: pb.UnloadRequest, context: _Context) -> pb.UnloadResponse:
        """See inference.proto."""
        return pb.UnloadResponse(freed_bytes=await self._residency.unload(request.reference))

    async def Merge(self, request: pb.MergeRequest, context: _Context) -> pb.MergeResponse:
        """See inference.proto."""
        digest, outcome = await self._residency.merge(request.reference)
        return pb.MergeResponse(
            adapter_digest=digest,
            overlay_bytes=outcome.overlay_bytes,
            build_time=_duration(outcome.build_s),
            switch_time=_duration(outcome.switch_s),
        )

    async def Unmerge(self, request: pb.UnmergeRequest, context: _Context) -> pb.UnmergeResponse:
        """See inference.proto."""
        digest, switch_s = await self._residency.unmerge()
        return pb.UnmergeResponse(adapter_digest=digest, switch_time=_duration(switch_s))


def _message(resident: Resident) -> pb.ResidentAdapter:
    return pb.ResidentAdapter(
        reference=resident.reference,
        digest=resident.digest,
        kind=resident.kind,
        resident_bytes=resident.size_bytes,
        lease_count=resident.leases,
        merged=resident.merged,
        requests_served=resident.served,
        idle=_duration(resident.idle_s),
    )


def _duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
