"""`ServerStats` as Prometheus metrics, read at every scrape. Nothing is counted here and nothing is kept.

docs/metrics.md describes every name. Adapters are labels only while they are in memory, so a server that has seen a
million adapters exports no more series than fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import inf

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from weft import __version__
from weft_server.engine import EngineInfo
from weft_server.server_stats import ServerStats, adapter_name
from weft_server.stats import EngineStats, Histogram


class ServerCollector(Collector):
    """Asks for the statistics once a scrape, in the scrape's own thread. Raises what `ask` raises."""

    def __init__(self, ask: Callable[[], ServerStats], info: EngineInfo, base_name: str) -> None:
        self._ask = ask
        self._build = {
            "version": __version__,
            "engine": info.name,
            "device": info.device,
            "dtype": info.dtype,
            "base": base_name,
        }

    def collect(self) -> Iterable[Metric]:
        """Every metric, at one moment."""
        stats = self._ask()
        yield InfoMetricFamily("weft_build", "The server and what it serves.", self._build)
        yield _gauge("weft_start_time_seconds", "When the server started (Unix time).", stats.started_at.timestamp())
        yield from _requests(stats)
        yield from _engine(stats.engine)
        yield from _key_values(stats.engine)
        yield from _adapters(stats)
        yield from _merging(stats)
        yield from _memory(stats)


def _requests(stats: ServerStats) -> Iterator[Metric]:
    requests = stats.requests
    yield _counters("weft_requests", "Requests that have ended, by gRPC status.", ("code",), requests.ended)
    yield _gauge("weft_requests_in_flight", "Requests that have not ended.", requests.in_flight)
    yield _histogram("weft_request_duration_seconds", "From arrival to the end.", requests.duration_s)
    yield _histogram("weft_request_first_token_seconds", "From arrival to the first token.", requests.first_token_s)
    yield _histogram("weft_request_inter_token_seconds", "Between two tokens of one answer.", requests.inter_token_s)
    queued = "From being handed to the engine until joining the batch."
    yield _histogram("weft_request_queue_seconds", queued, stats.engine.queue_seconds)


def _engine(engine: EngineStats) -> Iterator[Metric]:
    yield _counter("weft_steps", "Steps that computed something.", engine.steps)
    yield _histogram("weft_step_duration_seconds", "Of one step.", engine.step_seconds)
    yield _histogram("weft_step_rows", "Tokens of one step, prompts' and answers' together.", engine.step_rows)
    yield _counter("weft_prompt_tokens", "Prompt tokens computed.", engine.prompt_tokens)
    yield _counter("weft_cached_tokens", "Prompt tokens found in the cache and not computed.", engine.cached_tokens)
    yield _counter("weft_generated_tokens", "Tokens generated.", engine.generated_tokens)
    yield _counter("weft_preemptions", "Requests put back into the queue to make room.", engine.preemptions)
    outcomes = {"finished": engine.finished, "failed": engine.failed, "cancelled": engine.cancelled}
    yield _counters("weft_engine_requests", "Requests that left the engine.", ("outcome",), outcomes)
    yield _gauge("weft_running_requests", "Requests in the batch.", engine.running)
    yield _gauge("weft_waiting_requests", "Requests in the engine's queue.", engine.waiting)
    yield _gauge("weft_active_adapters", "Adapters with requests in the batch.", engine.active_adapters)


def _key_values(engine: EngineStats) -> Iterator[Metric]:
    used, cached = engine.blocks_used, engine.blocks_cached
    blocks = {"used": used, "cached": cached, "free": engine.blocks_total - used - cached}
    yield _gauges("weft_kv_blocks", "Blocks of the key-value cache.", ("state",), blocks)
    sought = {"hit": engine.prefix_hit_tokens, "miss": engine.prefix_miss_tokens}
    yield _counters("weft_prefix_tokens", "Tokens looked for in the key-value cache.", ("result",), sought)


def _adapters(stats: ServerStats) -> Iterator[Metric]:
    counts, tiers = stats.residency, stats.tiers.items()
    yield _gauges("weft_adapters", "Adapters by place.", ("tier",), {tier.value: held.adapters for tier, held in tiers})
    sizes = {tier.value: held.size_bytes for tier, held in tiers}
    yield _gauges("weft_adapter_bytes", "Bytes of adapters by place.", ("tier",), sizes)
    resident = GaugeMetricFamily("weft_adapter_resident", "1 for each adapter in memory.", labels=(*_NAMED, "tier"))
    merged = GaugeMetricFamily("weft_adapter_merged", "1 for the adapter that is merged.", labels=_NAMED)
    for adapter in stats.resident:
        resident.add_metric((adapter_name(adapter), adapter.digest, adapter.tier.value), 1)
        if adapter.digest == stats.merged_digest:
            merged.add_metric((adapter_name(adapter), adapter.digest), 1)
    yield resident
    yield merged
    tokens = CounterMetricFamily("weft_adapter_tokens", "Tokens generated, by adapter in memory.", labels=_NAMED)
    for entry in stats.adapter_tokens:
        tokens.add_metric((entry.adapter, entry.digest), entry.generated_tokens)
    yield tokens
    yield _counter("weft_adapter_loads", "Adapters brought into memory.", counts.loads)
    yield _counter("weft_adapter_load_failures", "Adapters that could not be.", counts.load_failures)
    yield _histogram("weft_adapter_load_duration_seconds", "Pulling, verifying and binding.", counts.load_s)
    yield _counter("weft_adapter_evictions", "Adapters that left memory to make room.", counts.evictions)
    yield _counter("weft_adapter_reloads", "Aliases that moved and whose new version came in.", counts.reloads)
    yield _gauge("weft_quarantined_adapters", "Adapters under quarantine.", stats.quarantined)


def _merging(stats: ServerStats) -> Iterator[Metric]:
    counts = stats.residency
    yield _counter("weft_merges", "Times merged weights came into use.", counts.merges)
    yield _counter("weft_unmerges", "Times they went out of use, and none took their place.", counts.unmerges)
    yield _histogram("weft_merge_build_seconds", "Building merged weights; 0 if they were kept.", counts.build_s)
    yield _histogram("weft_merge_switch_seconds", "From asking for a switch until it is in force.", counts.switch_s)
    yield _gauge("weft_overlays", "Merged weights kept ready, those in use included.", stats.overlays)


def _memory(stats: ServerStats) -> Iterator[Metric]:
    memory = stats.memory
    used = {
        "base": memory.base_bytes,
        "key_values": memory.key_value_used_bytes,
        "adapters": memory.adapter_bytes,
        "packs": memory.pack_bytes,
        "overlays": memory.overlay_bytes,
    }
    limits = {
        "key_values": memory.key_value_limit_bytes,
        "adapters": memory.adapter_limit_bytes,
        "overlays": memory.overlay_limit_bytes,
    }
    yield _gauges("weft_memory_bytes", "Memory in use.", ("use",), used)
    yield _gauges("weft_memory_limit_bytes", "The most of it.", ("use",), limits)
    yield _gauge("weft_disk_bytes", "Pulled adapters on disk.", memory.disk_bytes)
    yield _gauge("weft_disk_limit_bytes", "The most of it.", memory.disk_limit_bytes)


_NAMED = ("adapter", "digest")


def _counter(name: str, meaning: str, value: float) -> Metric:
    return CounterMetricFamily(name, meaning, value=value)


def _counters(name: str, meaning: str, labels: tuple[str], values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, meaning, labels=labels)
    for label, value in values.items():
        family.add_metric((label,), value)
    return family


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(name, meaning, value=value)


def _gauges(name: str, meaning: str, labels: tuple[str], values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, meaning, labels=labels)
    for label, value in values.items():
        family.add_metric((label,), value)
    return family


def _histogram(name: str, meaning: str, histogram: Histogram) -> Metric:
    buckets, below = [], 0
    for bound, count in zip((*histogram.bounds, inf), histogram.counts, strict=True):
        below += count
        buckets.append(("+Inf" if bound == inf else repr(bound), below))
    return HistogramMetricFamily(name, meaning, buckets=buckets, sum_value=histogram.total)
