"""A server's statistics as the clients and `weft stats` give them, against a scripted server."""

import dataclasses
import json
import math
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from weft.v1 import inference_pb2 as pb
from weft_client import InferenceClient
from weft_client.rates import rates
from weft_client.stats import Histogram, ServerStats
from weft_client.stats_messages import parse_stats

Weft = Callable[..., Result]
DIGEST = "sha256:" + "cd" * 32
BOUNDS = (0.01, 0.02, 0.05)


def histogram(*counts: int, total: float = 1.0) -> pb.Histogram:
    return pb.Histogram(upper_bounds=BOUNDS, counts=counts, sum=total)


def answer(uptime_s: int, *, started_s: int = 1_800_000_000, times: int = 1) -> pb.GetStatsResponse:
    """A server that has done everything `times` times."""
    spread = histogram(0, 6 * times, 4 * times, 0, total=0.2 * times)
    return pb.GetStatsResponse(
        started_at=Timestamp(seconds=started_s),
        uptime=Duration(seconds=uptime_s),
        requests=pb.RequestStats(
            ended=[
                pb.RequestStats.CodeCount(code="NOT_FOUND", count=times),
                pb.RequestStats.CodeCount(code="OK", count=9 * times),
            ],
            in_flight=3,
            duration_seconds=spread,
            time_to_first_token_seconds=spread,
            inter_token_seconds=spread,
            queue_seconds=histogram(0, 0, 0, 0, total=0.0),
        ),
        engine=pb.EngineStats(
            steps=10 * times,
            prompt_tokens=500 * times,
            cached_tokens=100 * times,
            generated_tokens=200 * times,
            running=2,
            waiting=1,
            active_adapters=1,
            step_seconds=spread,
            step_rows=pb.Histogram(upper_bounds=(8, 64), counts=(0, 10 * times, 0), sum=250 * times),
        ),
        key_values=pb.KeyValueStats(
            total_blocks=64,
            used_blocks=5,
            cached_blocks=7,
            block_bytes=1024,
            prefix_hit_tokens=100 * times,
            prefix_miss_tokens=300 * times,
        ),
        residency=pb.ResidencyStats(
            tiers=[
                pb.ResidencyStats.TierCount(tier=pb.ADAPTER_TIER_HOST, adapters=2, bytes=3 << 20),
                pb.ResidencyStats.TierCount(tier=pb.ADAPTER_TIER_DISK, adapters=5, bytes=4 << 20),
            ],
            loads=2,
            load_failures=1,
            load_seconds=spread,
            evictions=3,
            reloads=4,
            quarantined=1,
        ),
        merging=pb.MergeStats(
            merges=2,
            unmerges=1,
            switches=3,
            build_seconds=spread,
            switch_seconds=spread,
            overlays=1,
            merged_digest=DIGEST,
        ),
        memory=pb.MemoryStats(
            base_bytes=80 << 20,
            key_value_used_bytes=5 << 10,
            key_value_limit_bytes=64 << 10,
            adapter_bytes=3 << 20,
            adapter_limit_bytes=1 << 30,
            pack_bytes=1 << 20,
            overlay_bytes=5 << 20,
            overlay_limit_bytes=1 << 30,
            disk_bytes=7 << 20,
            disk_limit_bytes=10 << 30,
        ),
        adapter_tokens=[
            pb.AdapterTokens(adapter="acme/topics", digest=DIGEST, generated_tokens=150 * times),
            pb.AdapterTokens(adapter="base", generated_tokens=50 * times),
            pb.AdapterTokens(adapter="other"),
        ],
    )


def leaves(value: Any) -> list[Any]:
    """Every number and text in it, wherever it stands."""
    if isinstance(value, Message):
        value = [field for _, field in value.ListFields()]
    elif dataclasses.is_dataclass(value):
        value = list(vars(value).values())
    elif isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, str | bytes | int | float | datetime):
        return [value]
    return [leaf for part in value for leaf in leaves(part)]


def numbered(message: Message) -> None:
    """Fills every number of a message with one of its own, so that none can stand for another."""
    used = iter(range(1, 10_000))

    def fill(part: Any) -> None:
        for field in part.DESCRIPTOR.fields:
            repeated = field.is_repeated
            if field.message_type is not None:
                fill(getattr(part, field.name).add() if repeated else getattr(part, field.name))
            elif field.enum_type is not None:
                setattr(part, field.name, pb.ADAPTER_TIER_HOST)
            elif field.type == field.TYPE_STRING:
                setattr(part, field.name, f"text {next(used)}")
            elif repeated:
                getattr(part, field.name).append(next(used))
            else:
                setattr(part, field.name, next(used))

    fill(message)


def test_nothing_that_the_server_says_is_lost_or_mixed_up() -> None:
    message = pb.GetStatsResponse()
    numbered(message)
    said = leaves(message)
    parsed = leaves(parse_stats(message))
    times = [message.started_at.seconds, message.started_at.nanos, message.uptime.seconds, message.uptime.nanos]
    for leaf in set(said) - set(times) - {pb.ADAPTER_TIER_HOST}:
        assert leaf in parsed, leaf
    assert "host" in parsed
    assert parse_stats(message).uptime_s == message.uptime.ToNanoseconds() / 1e9


def test_a_client_answers_what_the_server_says(server: Any) -> None:
    server.script.stats = [answer(40)]
    with InferenceClient(server.target) as client:
        stats = client.stats()
    assert stats == parse_stats(answer(40))
    assert stats.started_at == datetime.fromtimestamp(1_800_000_000, UTC)
    assert stats.requests.ended == {"OK": 9, "NOT_FOUND": 1}
    assert stats.residency.tiers["disk"].adapters == 5


def test_quantiles_are_those_of_the_values_to_within_their_bucket() -> None:
    drawn = random.Random(3)
    values = [drawn.uniform(0, 1) ** 2 for _ in range(4000)]
    bounds = tuple((i + 1) / 50 for i in range(50))
    counts = np.histogram(values, bins=[0.0, *bounds])[0]
    found = Histogram(bounds, (*(int(c) for c in counts), 0), sum(values))
    for share in (0.01, 0.25, 0.5, 0.9, 0.99):
        assert found.quantile(share) == pytest.approx(float(np.quantile(values, share)), abs=1 / 50)
    assert found.mean == pytest.approx(float(np.mean(values)))


def test_quantiles_of_nothing_and_beyond_the_last_bound() -> None:
    assert math.isnan(Histogram(BOUNDS, (0, 0, 0, 0), 0.0).quantile(0.5))
    assert math.isnan(Histogram(BOUNDS, (0, 0, 0, 0), 0.0).mean)
    assert Histogram(BOUNDS, (0, 0, 0, 9), 9.0).quantile(0.5) == 0.05


def test_rates_are_what_happened_between_by_the_servers_clock() -> None:
    before, now = parse_stats(answer(40)), parse_stats(answer(50, times=3))
    found = rates(before, now)
    assert found is not None
    assert found.interval_s == 10
    assert found.requests_per_s == 2.0
    assert found.generated_tokens_per_s == 40.0
    assert found.prompt_tokens_per_s == 100.0
    assert found.cached_tokens_per_s == 20.0
    assert found.mean_step_rows == 25.0
    assert found.first_token_s == pytest.approx(0.01 + 0.01 * 10 / 12)


def test_rates_of_an_idle_server_are_zero_and_its_times_are_none() -> None:
    found = rates(parse_stats(answer(40)), parse_stats(answer(50)))
    assert found is not None
    assert (found.requests_per_s, found.generated_tokens_per_s) == (0.0, 0.0)
    assert (found.mean_step_rows, found.step_s, found.first_token_s, found.inter_token_s) == (None,) * 4


def test_there_are_no_rates_across_a_restart_or_back_in_time() -> None:
    before, again = parse_stats(answer(40)), parse_stats(answer(60, started_s=1_800_000_050))
    assert rates(before, again) is None
    with pytest.raises(ValueError, match="10 s older"):
        rates(before, parse_stats(answer(30)))


def test_stats_prints_a_summary(weft: Weft, server: Any) -> None:
    server.script.stats = [answer(40)]
    lines = weft("stats").stdout.splitlines()
    text = "\n".join(lines)
    assert lines[0].split() == ["up", "40.0", "s"]
    for part in (
        "3 in flight; ended: 9 OK, 1 NOT_FOUND",
        "time to first token  p50 18 ms, p99 49 ms",
        "time in queue        none yet",
        "200 generated; of prompts 500 computed, 100 found in the cache",
        "2 running, 1 waiting, 1 adapters; 0 preemptions",
        "25.0 tokens each",
        "5 blocks used, 7 kept, of 64; 25.0% of the tokens looked up were found",
        "2 host (3.0 MiB), 5 disk (4.0 MiB), 1 quarantined",
        "2, 1 failed; p50 18 ms, p99 49 ms; 3 evictions, 4 reloads",
        "cdcdcdcdcdcd merged; 2 merges, 1 unmerges",
        "base 80.0 MiB; keys and values 5.0 KiB of 64.0 KiB; adapters 3.0 MiB of 1.0 GiB, stacked 1.0 MiB",
        "75.0% of generated tokens (150) cdcdcdcdcdcd",
    ):
        assert part in text, part
    assert "other" not in text, "what has no tokens has no line"


def test_stats_json_is_everything(weft: Weft, server: Any) -> None:
    server.script.stats = [answer(40)]
    document = json.loads(weft("stats", "--json").stdout)
    assert document["started_at"] == "2027-01-15T08:00:00Z"
    assert document.keys() == {field.name for field in dataclasses.fields(ServerStats)}
    assert document["requests"]["first_token_s"] == {
        "upper_bounds": list(BOUNDS),
        "counts": [0, 6, 4, 0],
        "sum": 0.2,
    }
    assert document["residency"]["tiers"]["host"] == {"adapters": 2, "bytes": 3 << 20}


def test_watch_prints_a_line_of_rates_for_each_interval(weft: Weft, server: Any) -> None:
    server.script.stats = [answer(40), answer(50, times=3), answer(60, times=3)]
    titles, busy, idle = weft("stats", "--watch", "0.01", "--count", "2").stdout.splitlines()
    assert " ".join(titles.split()) == "REQ/S OUT/S IN/S CACHED/S RUNNING WAITING ROWS STEP FIRST NEXT"
    assert " ".join(busy.split()) == "2.0 40 100 20 2 1 25.0 18 ms 18 ms 18 ms"
    assert " ".join(idle.split()) == "0.0 0 0 0 2 1 - - - -"


def test_watch_says_that_the_server_was_started_again_and_goes_on(weft: Weft, server: Any) -> None:
    later = 1_800_000_060
    server.script.stats = [answer(40), answer(5, started_s=later), answer(15, started_s=later, times=2)]
    watched = weft("stats", "--watch", "0.01", "--count", "2", "--json")
    assert watched.stderr == "the server was started again: its counts begin at 0\n"
    (line,) = watched.stdout.splitlines()
    found = json.loads(line)
    assert (found["interval_s"], found["generated_tokens_per_s"], found["running"]) == (10.0, 20.0, 2)


def test_a_count_without_watch_is_wrong_usage(weft: Weft, server: Any) -> None:
    assert "--count needs --watch" in weft("stats", "--count", "2", status=2).stderr
