"""What a server is doing now: two of its `ServerStats`, and what happened between them."""

from __future__ import annotations

from dataclasses import dataclass

from weft_client.stats import Histogram, ServerStats


@dataclass(frozen=True)
class Rates:
    """Between two moments of one server; times are medians, None where nothing happened."""

    interval_s: float
    """By the server's own clock."""
    requests_per_s: float
    """Ended, whatever the end."""
    generated_tokens_per_s: float
    prompt_tokens_per_s: float
    """Computed."""
    cached_tokens_per_s: float
    """Prompt tokens found in the cache and not computed."""
    mean_step_rows: float | None
    """Tokens of a step."""
    step_s: float | None
    first_token_s: float | None
    inter_token_s: float | None


def rates(before: ServerStats, now: ServerStats) -> Rates | None:
    """What happened between two answers of one server; None if it was started again in between.

    Raises `ValueError` when `now` is not later than `before`.
    """
    if now.started_at != before.started_at:
        return None
    interval_s = now.uptime_s - before.uptime_s
    if interval_s <= 0:
        raise ValueError(f"the later statistics are {-interval_s:g} s older than the earlier ones")
    engine, earlier = now.engine, before.engine
    rows = engine.step_rows.since(earlier.step_rows)
    ended = sum(now.requests.ended.values()) - sum(before.requests.ended.values())
    return Rates(
        interval_s=interval_s,
        requests_per_s=ended / interval_s,
        generated_tokens_per_s=(engine.generated_tokens - earlier.generated_tokens) / interval_s,
        prompt_tokens_per_s=(engine.prompt_tokens - earlier.prompt_tokens) / interval_s,
        cached_tokens_per_s=(engine.cached_tokens - earlier.cached_tokens) / interval_s,
        mean_step_rows=rows.mean if rows.count else None,
        step_s=_median(engine.step_s.since(earlier.step_s)),
        first_token_s=_median(now.requests.first_token_s.since(before.requests.first_token_s)),
        inter_token_s=_median(now.requests.inter_token_s.since(before.requests.inter_token_s)),
    )


def _median(histogram: Histogram) -> float | None:
    return histogram.quantile(0.5) if histogram.count else None
