"""What `stats()` answers, as frozen dataclasses: what a server has done since it started, and what it holds now.

Counters only grow until the server is started again. Knows nothing of gRPC or protobuf.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Histogram:
    """How often a value fell into each bucket."""

    upper_bounds: tuple[float, ...]
    """The largest value of each bucket, rising."""
    counts: tuple[int, ...]
    """One a bucket, and one more for the values above every bound. Not cumulative."""
    sum: float
    """Of all values, in the unit of the field's name."""

    @property
    def count(self) -> int:
        """Of all values."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """NaN when there are no values."""
        return self.sum / self.count if self.count else math.nan

    def quantile(self, share: float) -> float:
        """The value that `share` of the values do not exceed, as far as buckets can say: read off a straight line
        through its bucket. NaN when there are no values; the last bound for what lies above it."""
        if not self.count:
            return math.nan
        rank, below, lower = share * self.count, 0, 0.0
        for upper, count in zip(self.upper_bounds, self.counts, strict=False):
            if count and below + count >= rank:
                return lower + (upper - lower) * (rank - below) / count
            below, lower = below + count, upper
        return lower

    def since(self, earlier: Histogram) -> Histogram:
        """What was added after `earlier`, of the same server."""
        counts = tuple(now - then for now, then in zip(self.counts, earlier.counts, strict=True))
        return Histogram(self.upper_bounds, counts, self.sum - earlier.sum)


@dataclass(frozen=True)
class RequestStats:
    """Calls of Generate and GenerateStream."""

    ended: Mapping[str, int]
    """By the name of their gRPC status. A call whose deadline passed is CANCELLED."""
    in_flight: int
    duration_s: Histogram
    """From a call's arrival to its end."""
    first_token_s: Histogram
    """From a call's arrival to its first token."""
    inter_token_s: Histogram
    """Between two tokens of one answer."""
    queue_s: Histogram
    """From being handed to the engine until the batch takes it in."""


@dataclass(frozen=True)
class EngineStats:
    """The loop that computes."""

    steps: int
    prompt_tokens: int
    """Computed; what preempted requests had to compute again included."""
    cached_tokens: int
    """Prompt tokens found in the cache and not computed."""
    generated_tokens: int
    preemptions: int
    """Times a request was put back into the queue to make room."""
    finished: int
    failed: int
    cancelled: int
    running: int
    """Requests in the batch now."""
    waiting: int
    """Requests in the queue now."""
    active_adapters: int
    """Adapters with requests in the batch now."""
    step_s: Histogram
    step_rows: Histogram
    """Tokens of a step, prompts' and answers' together."""


@dataclass(frozen=True)
class KeyValueStats:
    """The paged cache of keys and values."""

    total_blocks: int
    used_blocks: int
    """Held by requests now."""
    cached_blocks: int
    """Held by nobody, and kept for a prompt that begins the same."""
    block_bytes: int
    prefix_hit_tokens: int
    """Tokens that requests looked for in the cache, and found."""
    prefix_miss_tokens: int
    """Tokens that requests looked for in the cache, and did not find."""


@dataclass(frozen=True)
class Tier:
    """The adapters whose nearest place this is: "device", "host" or "disk"."""

    adapters: int
    bytes: int


@dataclass(frozen=True)
class ResidencyStats:
    """Adapters coming and going."""

    tiers: Mapping[str, Tier]
    """By name."""
    loads: int
    load_failures: int
    load_s: Histogram
    """Pulling, verifying and binding, of the loads that succeeded."""
    evictions: int
    reloads: int
    """Times an alias moved and its new version was brought in."""
    quarantined: int


@dataclass(frozen=True)
class MergeStats:
    """Merged weights."""

    merges: int
    unmerges: int
    switches: int
    """Times the weights in use were swapped, whoever asked."""
    build_s: Histogram
    switch_s: Histogram
    overlays: int
    """Merged weights kept ready, those in use included."""
    merged_digest: str
    """Empty: none."""


@dataclass(frozen=True)
class MemoryStats:
    """Bytes, and their limits."""

    base_bytes: int
    key_value_used_bytes: int
    key_value_limit_bytes: int
    adapter_bytes: int
    adapter_limit_bytes: int
    pack_bytes: int
    """Adapters' weights stacked for the batch."""
    overlay_bytes: int
    overlay_limit_bytes: int
    disk_bytes: int
    """Of pulled artifacts, those of adapters in memory included."""
    disk_limit_bytes: int


@dataclass(frozen=True)
class AdapterTokens:
    """What was generated through one adapter since it came into memory."""

    adapter: str
    """namespace/name, "base", or "other" for all that have left memory."""
    digest: str
    generated_tokens: int


@dataclass(frozen=True)
class ServerStats:
    """One server at one moment."""

    started_at: datetime
    """UTC; another one means that the server was started again."""
    uptime_s: float
    requests: RequestStats
    engine: EngineStats
    key_values: KeyValueStats
    residency: ResidencyStats
    merging: MergeStats
    memory: MemoryStats
    adapter_tokens: tuple[AdapterTokens, ...]
