"""`ServerStats` turned into protobuf. The only place that knows both."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from weft.v1 import inference_pb2 as pb
from weft_server.residents import Tier
from weft_server.server_stats import MemoryStats, ServerStats
from weft_server.stats import EngineStats, Histogram

TIERS = {
    Tier.DEVICE: pb.ADAPTER_TIER_DEVICE,
    Tier.HOST: pb.ADAPTER_TIER_HOST,
    Tier.DISK: pb.ADAPTER_TIER_DISK,
}


def stats_message(stats: ServerStats) -> pb.GetStatsResponse:
    """The whole answer."""
    started_at, uptime = Timestamp(), Duration()
    started_at.FromDatetime(stats.started_at)
    uptime.FromNanoseconds(int(stats.uptime_s * 1e9))
    return pb.GetStatsResponse(
        started_at=started_at,
        uptime=uptime,
        requests=_requests(stats),
        engine=_engine(stats.engine),
        key_values=_key_values(stats.engine),
        residency=_residency(stats),
        merging=_merging(stats),
        memory=_memory(stats.memory),
        adapter_tokens=[
            pb.AdapterTokens(adapter=entry.adapter, digest=entry.digest, generated_tokens=entry.generated_tokens)
            for entry in stats.adapter_tokens
        ],
    )


def _requests(stats: ServerStats) -> pb.RequestStats:
    requests = stats.requests
    return pb.RequestStats(
        ended=[pb.RequestStats.CodeCount(code=code, count=count) for code, count in sorted(requests.ended.items())],
        in_flight=requests.in_flight,
        duration_seconds=_histogram(requests.duration_s),
        time_to_first_token_seconds=_histogram(requests.first_token_s),
        inter_token_seconds=_histogram(requests.inter_token_s),
        queue_seconds=_histogram(stats.engine.queue_seconds),
    )


def _engine(engine: EngineStats) -> pb.EngineStats:
    return pb.EngineStats(
        steps=engine.steps,
        prompt_tokens=engine.prompt_tokens,
        cached_tokens=engine.cached_tokens,
        generated_tokens=engine.generated_tokens,
        preemptions=engine.preemptions,
        finished=engine.finished,
        failed=engine.failed,
        cancelled=engine.cancelled,
        running=engine.running,
        waiting=engine.waiting,
        active_adapters=engine.active_adapters,
        step_seconds=_histogram(engine.step_seconds),
        step_rows=_histogram(engine.step_rows),
    )


def _key_values(engine: EngineStats) -> pb.KeyValueStats:
    return pb.KeyValueStats(
        total_blocks=engine.blocks_total,
        used_blocks=engine.blocks_used,
        cached_blocks=engine.blocks_cached,
        block_bytes=engine.block_bytes,
        prefix_hit_tokens=engine.prefix_hit_tokens,
        prefix_miss_tokens=engine.prefix_miss_tokens,
    )


def _residency(stats: ServerStats) -> pb.ResidencyStats:
    counts = stats.residency
    return pb.ResidencyStats(
        tiers=[
            pb.ResidencyStats.TierCount(tier=TIERS[tier], adapters=held.adapters, bytes=held.size_bytes)
            for tier, held in stats.tiers.items()
        ],
        loads=counts.loads,
        load_failures=counts.load_failures,
        load_seconds=_histogram(counts.load_s),
        evictions=counts.evictions,
        reloads=counts.reloads,
        quarantined=stats.quarantined,
    )


def _merging(stats: ServerStats) -> pb.MergeStats:
    counts = stats.residency
    return pb.MergeStats(
        merges=counts.merges,
        unmerges=counts.unmerges,
        switches=counts.switch_s.count,
        build_seconds=_histogram(counts.build_s),
        switch_seconds=_histogram(counts.switch_s),
        overlays=stats.overlays,
        merged_digest=stats.merged_digest,
    )


def _memory(memory: MemoryStats) -> pb.MemoryStats:
    return pb.MemoryStats(
        base_bytes=memory.base_bytes,
        key_value_used_bytes=memory.key_value_used_bytes,
        key_value_limit_bytes=memory.key_value_limit_bytes,
        adapter_bytes=memory.adapter_bytes,
        adapter_limit_bytes=memory.adapter_limit_bytes,
        pack_bytes=memory.pack_bytes,
        overlay_bytes=memory.overlay_bytes,
        overlay_limit_bytes=memory.overlay_limit_bytes,
        disk_bytes=memory.disk_bytes,
        disk_limit_bytes=memory.disk_limit_bytes,
    )


def _histogram(histogram: Histogram) -> pb.Histogram:
    return pb.Histogram(upper_bounds=histogram.bounds, counts=histogram.counts, sum=histogram.total)
