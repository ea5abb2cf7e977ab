"""`weft stats`: what a server has done since it started, and with `--watch` what it is doing now."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from weft_client.cli.options import FiniteRange, json_option, server_option
from weft_client.cli.output import duration, echo_fields, echo_json, share, short, size, timestamp
from weft_client.cli.sources import connected

if TYPE_CHECKING:
    from weft_client.inference import InferenceClient
    from weft_client.rates import Rates
    from weft_client.stats import Histogram, MemoryStats, ServerStats

_TITLES = ("REQ/S", "OUT/S", "IN/S", "CACHED/S", "RUNNING", "WAITING", "ROWS", "STEP", "FIRST", "NEXT")
_WIDTH = 9


@click.command()
@click.option(
    "--watch",
    "watch_s",
    type=FiniteRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Rates, one line for each such interval, until Ctrl-C.",
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="With --watch: end after N lines.")
@json_option
@server_option
def stats(watch_s: float | None, count: int | None, as_json: bool, server_target: str | None) -> None:
    """Show what a server has done since it started, and what it holds now.

    Quantiles are read off histograms: p50 is what half of the values do not exceed, to about a factor of two. With
    --watch the columns are requests ended, tokens generated, prompt tokens computed and prompt tokens found in the
    cache, each a second; requests running and waiting; tokens of a step; and the medians of a step, of the time to a
    first token, and of the time to each next one. With --watch --json each line is one JSON document.

    \b
    Example:
      weft stats
      weft stats --watch 5
    """
    if count is not None and watch_s is None:
        raise click.UsageError("--count needs --watch")
    with connected(server_target) as client:
        if watch_s is not None:
            _watch(client, watch_s, count, as_json=as_json)
            return
        found = client.stats()
    if as_json:
        echo_json({**dataclasses.asdict(found), "started_at": timestamp(found.started_at)})
        return
    echo_fields(_summary(found))


def _summary(found: ServerStats) -> Iterator[tuple[str, str]]:
    requests, engine, blocks = found.requests, found.engine, found.key_values
    ended = ", ".join(f"{count} {code}" for code, count in sorted(requests.ended.items(), key=lambda pair: -pair[1]))
    yield "up", duration(found.uptime_s)
    yield "requests", f"{requests.in_flight} in flight; ended: {ended or 'none'}"
    yield "time to first token", _spread(requests.first_token_s)
    yield "time to next token", _spread(requests.inter_token_s)
    yield "time in queue", _spread(requests.queue_s)
    yield "whole requests", _spread(requests.duration_s)
    yield (
        "tokens",
        f"{engine.generated_tokens} generated; of prompts {engine.prompt_tokens} computed, {engine.cached_tokens} "
        "found in the cache",
    )
    yield (
        "batch",
        f"{engine.running} running, {engine.waiting} waiting, {engine.active_adapters} adapters; "
        f"{engine.preemptions} preemptions",
    )
    yield "steps", f"{engine.steps}; {_spread(engine.step_s)}" + _rows(engine.step_rows)
    looked_up = blocks.prefix_hit_tokens + blocks.prefix_miss_tokens
    yield (
        "keys and values",
        f"{blocks.used_blocks} blocks used, {blocks.cached_blocks} kept, of {blocks.total_blocks}; "
        f"{share(blocks.prefix_hit_tokens, looked_up)} of the tokens looked up were found",
    )
    residency, merging = found.residency, found.merging
    tiers = ", ".join(f"{tier.adapters} {name} ({size(tier.bytes)})" for name, tier in residency.tiers.items())
    yield "adapters", (tiers or "none") + (f", {residency.quarantined} quarantined" if residency.quarantined else "")
    yield (
        "loads",
        f"{residency.loads}, {residency.load_failures} failed; {_spread(residency.load_s)}; "
        f"{residency.evictions} evictions, {residency.reloads} reloads",
    )
    yield (
        "merging",
        f"{short(merging.merged_digest) or 'nothing'} merged; {merging.merges} merges, {merging.unmerges} unmerges; "
        f"switches {_spread(merging.switch_s)}",
    )
    yield "memory", _memory(found.memory)
    total = sum(entry.generated_tokens for entry in found.adapter_tokens)
    for entry in sorted(found.adapter_tokens, key=lambda entry: -entry.generated_tokens):
        if entry.generated_tokens:
            part = share(entry.generated_tokens, total)
            yield f"  {entry.adapter}", f"{part} of generated tokens ({entry.generated_tokens}) {short(entry.digest)}"


def _memory(memory: MemoryStats) -> str:
    return (
        f"base {size(memory.base_bytes)}; keys and values {size(memory.key_value_used_bytes)} of "
        f"{size(memory.key_value_limit_bytes)}; adapters {size(memory.adapter_bytes)} of "
        f"{size(memory.adapter_limit_bytes)}, stacked {size(memory.pack_bytes)}; merged weights "
        f"{size(memory.overlay_bytes)} of {size(memory.overlay_limit_bytes)}"
    )


def _spread(histogram: Histogram) -> str:
    if not histogram.count:
        return "none yet"
    p50, p99 = (duration(histogram.quantile(rank)) for rank in (0.5, 0.99))
    return f"p50 {p50}, p99 {p99}"


def _rows(histogram: Histogram) -> str:
    return f"; {histogram.mean:.1f} tokens each" if histogram.count else ""


def _watch(client: InferenceClient, watch_s: float, count: int | None, *, as_json: bool) -> None:
    from weft_client.rates import rates

    before = client.stats()
    for line in itertools.count():
        time.sleep(watch_s)
        now = client.stats()
        found = rates(before, now)
        if found is None:
            click.echo("the server was started again: its counts begin at 0", err=True)
        else:
            _echo_line(found, now, as_json=as_json, titles=line % 20 == 0)
        before = now
        if line + 1 == count:
            return


def _echo_line(found: Rates, now: ServerStats, *, as_json: bool, titles: bool) -> None:
    if as_json:
        document = {**vars(found), "running": now.engine.running, "waiting": now.engine.waiting}
        click.echo(json.dumps(document))
        return
    if titles:
        click.echo("".join(title.rjust(_WIDTH) for title in _TITLES))
    times = (found.step_s, found.first_token_s, found.inter_token_s)
    cells = (
        f"{found.requests_per_s:.1f}",
        f"{found.generated_tokens_per_s:.0f}",
        f"{found.prompt_tokens_per_s:.0f}",
        f"{found.cached_tokens_per_s:.0f}",
        str(now.engine.running),
        str(now.engine.waiting),
        "-" if found.mean_step_rows is None else f"{found.mean_step_rows:.1f}",
        *("-" if seconds is None else duration(seconds) for seconds in times),
    )
    click.echo("".join(cell.rjust(_WIDTH) for cell in cells))
