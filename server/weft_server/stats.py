"""What an engine has done so far and is doing now, as one consistent value: for metrics, for a statistics call.

Counters only grow while the engine lives; gauges say what was true after the latest step. It knows no torch and no
protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

STEP_SECONDS_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
QUEUE_SECONDS_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0)
STEP_ROWS_BOUNDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


@dataclass(frozen=True)
class Histogram:
    """How often a value fell where, since the engine started."""

    bounds: tuple[float, ...]
    """Upper bounds, inclusive, ascending."""
    counts: tuple[int, ...]
    """One for each bound, of the values above the bound before it; and one more for those above all. Not cumulative."""
    total: float = 0.0
    """The sum of all values."""

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)

    @classmethod
    def empty(cls, bounds: tuple[float, ...]) -> Histogram:
        """No values yet."""
        return cls(bounds, (0,) * (len(bounds) + 1))


@dataclass(frozen=True)
class EngineStats:
    """One engine at one moment."""

    steps: int = 0
    """Steps that computed something. Counter, as is every count down to `prefix_miss_tokens`."""
    prompt_tokens: int = 0
    """Tokens computed that were not generated in the same run of their request: prompts, the virtual tokens of soft
    prompts among them, and what a preempted request had to compute again."""
    generated_tokens: int = 0
    """Tokens sampled."""
    cached_tokens: int = 0
    """Prompt tokens, virtual ones not included, whose keys and values were found and not computed, at the first
    admission of their request."""
    preemptions: int = 0
    """Times that a running request had to give its blocks back and wait again."""
    finished: int = 0
    """Requests that ended by themselves."""
    failed: int = 0
    """Requests that ended in an error."""
    cancelled: int = 0
    """Requests that their caller gave up."""
    prefix_hit_tokens: int = 0
    """Tokens, virtual ones included, that admissions looked for in the prefix cache and found."""
    prefix_miss_tokens: int = 0
    """Tokens, virtual ones included, that admissions looked for there and did not find."""
    running: int = 0
    """Requests in the batch now."""
    waiting: int = 0
    """Requests in the queue now, preempted ones included."""
    blocks_total: int = 0
    """Blocks of the key-value cache."""
    blocks_used: int = 0
    """Blocks that running requests hold now; one that several share counts once."""
    blocks_cached: int = 0
    """Blocks that nobody holds now and that keep their contents for the next request with the same beginning."""
    block_bytes: int = 0
    """Bytes of one block."""
    active_adapters: int = 0
    """Adapters that running requests wear now, a merged one included; the base model does not count."""
    pack_bytes: int = 0
    """Bytes of the adapters' weights that are stacked for the batch, as of the latest change of its adapters."""
    last_step_s: float = 0.0
    """Seconds of the latest step."""
    last_step_rows: int = 0
    """Rows (tokens) of the latest step."""
    step_seconds: Histogram = field(default_factory=lambda: Histogram.empty(STEP_SECONDS_BOUNDS))
    """Seconds of every step."""
    step_rows: Histogram = field(default_factory=lambda: Histogram.empty(STEP_ROWS_BOUNDS))
    """Rows of every step."""
    queue_seconds: Histogram = field(default_factory=lambda: Histogram.empty(QUEUE_SECONDS_BOUNDS))
    """Seconds from the submission of every request until it joined the batch for the first time."""
    tokens_by_adapter: Mapping[str, int] = field(default_factory=dict)
    """Generated tokens by the digest of their adapter, "" for the base model; cumulative as long as the adapter is not
    released. `generated_tokens` less all of these are those of adapters that were."""
