"""The gRPC face of residency: what is in memory, and what is merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from weft.v1 import inference_pb2 as pb
from weft.v1 import inference_pb2_grpc as pb_grpc
from weft_registry.composition import parse_parts
from weft_registry.errors import InvalidInputError
from weft_registry.principal import EVERY, Principal, Scope
from weft_registry.reference import AdapterName, Reference
from weft_registry.serve.authentication import caller
from weft_server.engine import Engine
from weft_server.merge_control import MergeControl
from weft_server.residency import Residency
from weft_server.residents import Resident
from weft_server.server_stats import Statistics
from weft_server.stats_messages import TIERS, stats_message

_Context = grpc.aio.ServicerContext[Any, Any]


class AdapterAdminServicer(pb_grpc.AdapterAdminServiceServicer):
    """Answers with the statuses that inference.proto states; UNAUTHENTICATED and PERMISSION_DENIED where callers are
    asked who they are: loading needs what using needs, all else an administrator."""

    def __init__(
        self,
        residency: Residency,
        engine: Engine,
        overlay_limit_bytes: int,
        merges: MergeControl,
        statistics: Statistics,
    ) -> None:
        self._residency = residency
        self._merges = merges
        self._statistics = statistics
        self._engine = engine
        self._overlay_limit_bytes = overlay_limit_bytes

    async def ListResident(self, request: pb.ListResidentRequest, context: _Context) -> pb.ListResidentResponse:
        """See inference.proto."""
        asking = caller()
        # What lies on disk, and what is worn together, has no name by which to tell whose it is.
        everything = asking.may(Scope.ADMIN, EVERY)
        on_disk = await self._residency.on_disk() if request.include_disk and everything else []
        listed = [*self._residency.resident(), *self._residency.absent_quarantined()]
        listed = [resident for resident in listed if everything or _may_read(asking, resident)]
        listed += [resident for resident in on_disk if resident.digest not in {r.digest for r in listed}]
        engine = self._engine.stats()
        return pb.ListResidentResponse(
            adapters=[_message(resident, engine.tokens_by_adapter) for resident in listed],
            generated_tokens=engine.generated_tokens,
            disk_bytes=self._residency.disk.size_bytes,
            disk_limit_bytes=self._residency.disk.limit_bytes,
            resident_bytes=self._residency.resident_bytes,
            limit_bytes=self._residency.limit_bytes,
            overlay_bytes=self._engine.overlay_bytes,
            overlay_limit_bytes=self._overlay_limit_bytes,
        )

    async def Load(self, request: pb.LoadRequest, context: _Context) -> pb.LoadResponse:
        """See inference.proto."""
        # As a request for it would: no more, and no less.
        asking = caller()
        for adapter in _adapters(request.reference):
            asking.check_read(adapter)
        # Found once: should an alias move meanwhile, what is loaded is still what rights were asked for.
        worn = await self._residency.find(request.reference)
        for adapter in worn.made_of:
            asking.check_read(adapter)
        resident = await self._residency.load_found(worn)
        # The same content may be in memory by the name of somebody else's adapter.
        resident = replace(resident, reference=request.reference)
        return pb.LoadResponse(adapter=_message(resident, self._engine.stats().tokens_by_adapter))

    async def Unload(self, request: pb.UnloadRequest, context: _Context) -> pb.UnloadResponse:
        """See inference.proto."""
        asking, adapters = caller(), _adapters(request.reference)
        for adapter in adapters:
            asking.check_read(adapter)
        for adapter in adapters:
            asking.check(Scope.ADMIN, adapter.namespace)
        return pb.UnloadResponse(freed_bytes=await self._residency.unload(request.reference))

    async def Merge(self, request: pb.MergeRequest, context: _Context) -> pb.MergeResponse:
        """See inference.proto."""
        caller().check(Scope.ADMIN, EVERY)
        digest, outcome = await self._merges.merge(request.reference)
        return pb.MergeResponse(
            adapter_digest=digest,
            overlay_bytes=outcome.overlay_bytes,
            build_time=_duration(outcome.build_s),
            switch_time=_duration(outcome.switch_s),
            hot=outcome.hot,
            switch_steps=outcome.switch_steps,
        )

    async def Unmerge(self, request: pb.UnmergeRequest, context: _Context) -> pb.UnmergeResponse:
        """See inference.proto."""
        caller().check(Scope.ADMIN, EVERY)
        digest, switch_s = await self._merges.unmerge()
        return pb.UnmergeResponse(adapter_digest=digest, switch_time=_duration(switch_s))

    async def GetStats(self, request: pb.GetStatsRequest, context: _Context) -> pb.GetStatsResponse:
        """See inference.proto."""
        caller().check(Scope.ADMIN, EVERY)
        return stats_message(self._statistics.snapshot())


def _adapters(reference: str) -> list[AdapterName]:
    """The adapters that a reference names, one or several worn together."""
    return [Reference.parse(part.reference).adapter for part in parse_parts(reference)]


def _may_read(asking: Principal, resident: Resident) -> bool:
    try:
        return asking.may(Scope.READ, Reference.parse(resident.reference).adapter.namespace)
    except InvalidInputError:
        return False


def _message(resident: Resident, tokens_by_adapter: Mapping[str, int]) -> pb.ResidentAdapter:
    return pb.ResidentAdapter(
        reference=resident.reference,
        digest=resident.digest,
        kind=resident.kind,
        resident_bytes=resident.size_bytes,
        lease_count=resident.leases,
        merged=resident.merged,
        requests_served=resident.served,
        idle=_duration(resident.idle_s),
        hot=resident.hot,
        tier=TIERS[resident.tier],
        quarantined=resident.quarantined,
        reload_problem=resident.reload_problem,
        generated_tokens=tokens_by_adapter.get(resident.digest, 0),
    )


def _duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
