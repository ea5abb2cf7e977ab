"""Counting what vLLM does, as one `EngineStats`: fed by vLLM's own loggers and by the engine, read by any thread."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

from weft_server.histogram import Buckets
from weft_server.stats import QUEUE_SECONDS_BOUNDS, STEP_ROWS_BOUNDS, STEP_SECONDS_BOUNDS, EngineStats


class EngineCounts:
    """The counters behind `VllmEngine.stats`. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """All from zero."""
        with self._lock:
            self._step_seconds = Buckets(STEP_SECONDS_BOUNDS)
            self._step_rows = Buckets(STEP_ROWS_BOUNDS)
            self._queue_seconds = Buckets(QUEUE_SECONDS_BOUNDS)
            self._last_step = (0.0, 0)
            self._counts: Counter[str] = Counter()
            self._by_adapter: Counter[str] = Counter()
            self._usage = 0.0
            """The share of the cache that running requests held after the latest step."""

    def step(self, details: Any) -> None:
        """One iteration of vLLM's scheduler, as it describes it (`SchedulerIterationDetails`)."""
        rows = details.num_ctx_tokens + details.num_generation_tokens
        if details.is_dummy or not rows:
            return
        with self._lock:
            self._counts["steps"] += 1
            self._counts["prompt_tokens"] += details.num_ctx_tokens
            self._last_step = (details.elapsed_ms / 1000, rows)
            self._step_seconds.observe(self._last_step[0])
            self._step_rows.observe(rows)

    def scheduler(self, stats: Any) -> None:
        """What the scheduler says of the cache (`SchedulerStats`)."""
        found = stats.prefix_cache_stats
        hits = found.hits + found.preempted_hits
        with self._lock:
            self._usage = stats.kv_cache_usage
            self._counts["prefix_hit_tokens"] += hits
            self._counts["prefix_miss_tokens"] += found.queries + found.preempted_queries - hits

    def preempted(self, count: int) -> None:
        """Requests that had to give their blocks back."""
        with self._lock:
            self._counts["preemptions"] += count

    def joined(self, waited_s: float, cached_tokens: int) -> None:
        """A request that was computed for the first time."""
        with self._lock:
            self._queue_seconds.observe(waited_s)
            self._counts["cached_tokens"] += cached_tokens

    def tokens(self, digest: str, count: int) -> None:
        """Tokens that were generated under an adapter, "" for the base model."""
        with self._lock:
            self._counts["generated_tokens"] += count
            self._by_adapter[digest] += count

    def ended(self, how: str) -> None:
        """A request that is over: "finished", "failed" or "cancelled"."""
        with self._lock:
            self._counts[how] += 1

    def forget(self, digest: str) -> None:
        """Counts no tokens for an adapter that left memory."""
        with self._lock:
            self._by_adapter.pop(digest, None)

    @property
    def steps(self) -> int:
        """Steps so far."""
        return self._counts["steps"]

    def snapshot(
        self, *, running: int, waiting: int, active_adapters: int, blocks: int, block_bytes: int, pack_bytes: int
    ) -> EngineStats:
        """All of it, beside what the engine knows of its requests and reserved."""
        with self._lock:
            seconds, rows = self._last_step
            return EngineStats(
                **self._counts,
                running=running,
                waiting=waiting,
                active_adapters=active_adapters,
                blocks_total=blocks,
                # After the last request of all vLLM takes no step, and says nothing any more.
                blocks_used=round(self._usage * blocks) if running else 0,
                block_bytes=block_bytes,
                pack_bytes=pack_bytes,
                last_step_s=seconds,
                last_step_rows=rows,
                step_seconds=self._step_seconds.snapshot(),
                step_rows=self._step_rows.snapshot(),
                queue_seconds=self._queue_seconds.snapshot(),
                tokens_by_adapter=dict(self._by_adapter),
            )


def stat_logger(counts: EngineCounts) -> Any:
    """A factory of loggers for `AsyncLLM(stat_loggers=...)` that feed `counts`. Imports vLLM."""
    from vllm.v1.metrics.loggers import StatLoggerBase

    class Feeding(StatLoggerBase):  # type: ignore[misc]  # vLLM is not there for mypy.
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            pass

        def record(
            self,
            scheduler_stats: Any,
            iteration_stats: Any,
            mm_cache_stats: Any = None,
            engine_idx: int = 0,
        ) -> None:
            if scheduler_stats is not None:
                counts.scheduler(scheduler_stats)
                if scheduler_stats.iteration_details is not None:
                    counts.step(scheduler_stats.iteration_details)
            if iteration_stats is not None and iteration_stats.num_preempted_reqs:
                counts.preempted(iteration_stats.num_preempted_reqs)

        def log_engine_initialized(self) -> None:
            pass

    return Feeding
