"""The answer of GetStats, parsed into `weft_client.stats`. Knows protobuf, and nothing of channels."""

from __future__ import annotations

from datetime import UTC

from weft.v1 import inference_pb2 as pb
from weft_client.messages import tier_name
from weft_client.stats import (
    AdapterTokens,
    EngineStats,
    Histogram,
    KeyValueStats,
    MemoryStats,
    MergeStats,
    RequestStats,
    ResidencyStats,
    ServerStats,
    Tier,
)


def parse_stats(message: pb.GetStatsResponse) -> ServerStats:
    """The whole answer."""
    return ServerStats(
        started_at=message.started_at.ToDatetime(UTC),
        uptime_s=message.uptime.ToNanoseconds() / 1e9,
        requests=_requests(message.requests),
        engine=_engine(message.engine),
        key_values=_key_values(message.key_values),
        residency=_residency(message.residency),
        merging=_merging(message.merging),
        memory=_memory(message.memory),
        adapter_tokens=tuple(
            AdapterTokens(entry.adapter, entry.digest, entry.generated_tokens) for entry in message.adapter_tokens
        ),
    )


def _requests(message: pb.RequestStats) -> RequestStats:
    return RequestStats(
        ended={entry.code: entry.count for entry in message.ended},
        in_flight=message.in_flight,
        duration_s=_histogram(message.duration_seconds),
        first_token_s=_histogram(message.time_to_first_token_seconds),
        inter_token_s=_histogram(message.inter_token_seconds),
        queue_s=_histogram(message.queue_seconds),
    )


def _engine(message: pb.EngineStats) -> EngineStats:
    return EngineStats(
        steps=message.steps,
        prompt_tokens=message.prompt_tokens,
        cached_tokens=message.cached_tokens,
        generated_tokens=message.generated_tokens,
        preemptions=message.preemptions,
        finished=message.finished,
        failed=message.failed,
        cancelled=message.cancelled,
        running=message.running,
        waiting=message.waiting,
        active_adapters=message.active_adapters,
        step_s=_histogram(message.step_seconds),
        step_rows=_histogram(message.step_rows),
    )


def _key_values(message: pb.KeyValueStats) -> KeyValueStats:
    return KeyValueStats(
        total_blocks=message.total_blocks,
        used_blocks=message.used_blocks,
        cached_blocks=message.cached_blocks,
        block_bytes=message.block_bytes,
        prefix_hit_tokens=message.prefix_hit_tokens,
        prefix_miss_tokens=message.prefix_miss_tokens,
    )


def _residency(message: pb.ResidencyStats) -> ResidencyStats:
    return ResidencyStats(
        tiers={tier_name(held.tier): Tier(held.adapters, held.bytes) for held in message.tiers},
        loads=message.loads,
        load_failures=message.load_failures,
        load_s=_histogram(message.load_seconds),
        evictions=message.evictions,
        reloads=message.reloads,
        quarantined=message.quarantined,
    )


def _merging(message: pb.MergeStats) -> MergeStats:
    return MergeStats(
        merges=message.merges,
        unmerges=message.unmerges,
        switches=message.switches,
        build_s=_histogram(message.build_seconds),
        switch_s=_histogram(message.switch_seconds),
        overlays=message.overlays,
        merged_digest=message.merged_digest,
    )


def _memory(message: pb.MemoryStats) -> MemoryStats:
    return MemoryStats(
        base_bytes=message.base_bytes,
        key_value_used_bytes=message.key_value_used_bytes,
        key_value_limit_bytes=message.key_value_limit_bytes,
        adapter_bytes=message.adapter_bytes,
        adapter_limit_bytes=message.adapter_limit_bytes,
        pack_bytes=message.pack_bytes,
        overlay_bytes=message.overlay_bytes,
        overlay_limit_bytes=message.overlay_limit_bytes,
        disk_bytes=message.disk_bytes,
        disk_limit_bytes=message.disk_limit_bytes,
    )


def _histogram(message: pb.Histogram) -> Histogram:
    return Histogram(tuple(message.upper_bounds), tuple(message.counts), message.sum)
