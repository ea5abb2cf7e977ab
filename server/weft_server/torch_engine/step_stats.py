"""Counting what the steps do: fed by the step thread, read by any other as one consistent value."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable

from weft_server.histogram import Buckets
from weft_server.stats import STEP_ROWS_BOUNDS, STEP_SECONDS_BOUNDS, EngineStats
from weft_server.torch_engine.scheduler import Scheduler


class StepStats:
    """The counters behind an engine's `EngineStats`. One thread feeds them; any thread may take a snapshot."""

    def __init__(self, scheduler: Scheduler, block_bytes: int) -> None:
        self._scheduler = scheduler
        self._block_bytes = block_bytes
        self._lock = threading.Lock()
        self._step_seconds = Buckets(STEP_SECONDS_BOUNDS)
        self._step_rows = Buckets(STEP_ROWS_BOUNDS)
        self._last_step = (0.0, 0)
        self._counts: Counter[str] = Counter()
        self._by_adapter: Counter[str] = Counter()
        self._from_scheduler: dict[str, int] = {}
        self._queue_seconds = scheduler.counts.queue_seconds.snapshot()
        self.pack_bytes = 0
        self.note()

    def step(
        self, seconds: float, *, rows: int, prompt_rows: int, generated: Iterable[str], finished: int, failed: int
    ) -> None:
        """Counts one step, with one token for each adapter digest in `generated`."""
        with self._lock:
            self._step_seconds.observe(seconds)
            self._step_rows.observe(rows)
            self._last_step = (seconds, rows)
            self._counts["steps"] += 1
            self._counts["prompt_tokens"] += prompt_rows
            for digest in generated:
                self._counts["generated_tokens"] += 1
                self._by_adapter[digest] += 1
            self._counts["finished"] += finished
            self._counts["failed"] += failed
            self._look()

    def note(self, *, cancelled: int = 0, failed: int = 0) -> None:
        """Counts what ended between two steps, and looks again at who runs and who waits."""
        with self._lock:
            self._counts["cancelled"] += cancelled
            self._counts["failed"] += failed
            self._look()

    def forget(self, digest: str) -> None:
        """Counts no tokens for an adapter that left memory; there is no end to adapters that ever were there."""
        with self._lock:
            self._by_adapter.pop(digest, None)

    def snapshot(self) -> EngineStats:
        """All of it, as it was after the latest step or note."""
        with self._lock:
            seconds, rows = self._last_step
            return EngineStats(
                **self._counts,
                **self._from_scheduler,
                block_bytes=self._block_bytes,
                last_step_s=seconds,
                last_step_rows=rows,
                step_seconds=self._step_seconds.snapshot(),
                step_rows=self._step_rows.snapshot(),
                queue_seconds=self._queue_seconds,
                pack_bytes=self.pack_bytes,
                tokens_by_adapter=dict(self._by_adapter),
            )

    def _look(self) -> None:
        scheduler = self._scheduler
        counts, pool = scheduler.counts, scheduler.pool
        self._queue_seconds = counts.queue_seconds.snapshot()
        self._from_scheduler = {
            "cached_tokens": counts.cached_tokens,
            "preemptions": counts.preemptions,
            "prefix_hit_tokens": counts.prefix_hit_tokens,
            "prefix_miss_tokens": counts.prefix_miss_tokens,
            "running": scheduler.running_count,
            "waiting": scheduler.waiting_count,
            "blocks_total": pool.num_blocks,
            "blocks_used": pool.num_used,
            "blocks_cached": pool.num_cached,
            "active_adapters": scheduler.active_adapters,
        }
