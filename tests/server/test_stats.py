"""A whole server in this process: what it counts against what it was sent, and Prometheus against GetStats."""

import asyncio
import math
import re
import shutil
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.subjects import random_adapter
from tests.tiny_models import AddedBase
from weft_client import AsyncInferenceClient, Completion
from weft_client.stats import Histogram, ServerStats
from weft_registry import errors
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.reference import AdapterName
from weft_registry.transfer import push
from weft_server.options import ServeOptions
from weft_server.serving import running

KINDS = ("lora", "qalora", "prefix")
PROMPT = tuple(range(1, 42))
"""Longer than two blocks of the key-value cache."""


@dataclass(frozen=True)
class Served:
    """A running server, and a client of it."""

    client: AsyncInferenceClient
    metrics: str
    """HOST:PORT."""

    async def ask(self, adapter: str = "", prompt: tuple[int, ...] = PROMPT, tokens: int = 5) -> Completion:
        return await self.client.generate(
            adapter=adapter, token_ids=prompt, max_new_tokens=tokens, ignore_eos=True, timeout_s=120
        )

    async def scrape(self) -> dict[str, Metric]:
        """What Prometheus reads, by the name of the family."""

        def get() -> str:
            with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=60) as answer:
                text: str = answer.read().decode()
                return text

        families = list(text_string_to_metric_families(await asyncio.to_thread(get)))
        assert len({family.name for family in families}) == len(families), "a name is there twice"
        return {family.name: family for family in families}


@pytest.fixture
def home(tiny_base: Callable[..., AddedBase], tmp_path: Path) -> Home:
    """One base and one published adapter of each kind."""
    base, home = tiny_base(), Home(tmp_path / "home")
    shutil.copytree(base.home.bases / base.name, home.bases / base.name)
    registry = EmbeddedRegistry(home)
    for seed, kind in enumerate(KINDS):
        directory = tmp_path / kind
        random_adapter(kind, base.stored.spec, seed).write(directory, base.stored.spec, f"test/{kind}")
        push(registry, directory, AdapterName("test", kind), aliases=("production",))
    registry.close()
    return home


@asynccontextmanager
async def serve(home: Home, **settings: object) -> AsyncIterator[Served]:
    """A server over `home`, as `weft serve` has it, with free ports."""
    (base,) = [path.name for path in home.bases.iterdir()]
    values = {"port": 0, "metrics_port": 0, "dtype": "float32", "copies": "never", "grace_s": 0.0, **settings}
    async with running(ServeOptions(base=base, home=home, **values)) as server:
        assert server.metrics_address is not None
        async with AsyncInferenceClient(server.address) as client:
            yield Served(client, server.metrics_address)


async def test_a_server_that_was_asked_nothing_counts_nothing(home: Home) -> None:
    async with serve(home) as served:
        stats = await served.client.stats()
    assert stats.requests.ended == {}
    assert stats.engine.steps == stats.engine.step_s.count == stats.engine.generated_tokens == 0
    assert stats.residency.tiers == {}
    assert [(entry.adapter, entry.generated_tokens) for entry in stats.adapter_tokens] == [("base", 0), ("other", 0)]
    assert stats.memory.base_bytes > 0
    assert 0 < stats.memory.key_value_limit_bytes == stats.key_values.total_blocks * stats.key_values.block_bytes


async def test_every_request_and_every_token_is_counted_exactly(home: Home) -> None:
    async with serve(home) as served:
        answers = [await served.ask("test/lora"), await served.ask("test/lora"), await served.ask("")]
        chunks = served.client.stream(adapter="test/prefix", token_ids=PROMPT, max_new_tokens=3, ignore_eos=True)
        answers.append(Completion.from_chunks([chunk async for chunk in chunks]))
        with pytest.raises(errors.NotFoundError):
            await served.ask("test/nobody")
        for wrong in ({"temperature": -1.0}, {"max_new_tokens": 10**6}):
            with pytest.raises(errors.InvalidInputError):
                await served.client.generate("x", **wrong)
        stats = await served.client.stats()
    generated = sum(answer.generated_tokens for answer in answers)
    requests, engine, blocks = stats.requests, stats.engine, stats.key_values

    assert requests.ended == {"OK": 4, "NOT_FOUND": 1, "INVALID_ARGUMENT": 2}
    assert (requests.in_flight, requests.duration_s.count) == (0, 7)
    assert requests.first_token_s.count == requests.queue_s.count == 4
    assert requests.inter_token_s.count == generated - 4
    assert 0 < requests.first_token_s.sum < requests.duration_s.sum < stats.uptime_s

    assert (generated, engine.generated_tokens) == (18, 18)
    assert engine.cached_tokens == sum(answer.cached_tokens for answer in answers) == 32
    assert engine.prompt_tokens == 4 * len(PROMPT) - 32
    # Every token is computed once, but for the last one of each answer: nothing comes after it.
    assert engine.step_rows.sum == engine.prompt_tokens + engine.generated_tokens - 4
    assert engine.steps == engine.step_s.count == engine.step_rows.count == 18
    assert (engine.finished, engine.failed, engine.cancelled, engine.preemptions) == (4, 0, 0, 0)
    assert (engine.running, engine.waiting, engine.active_adapters) == (0, 0, 0)
    assert blocks.prefix_hit_tokens == 32
    assert blocks.used_blocks == stats.memory.key_value_used_bytes == 0
    assert blocks.cached_blocks > 0

    lora, prefix = answers[0].adapter_digest, answers[3].adapter_digest
    assert {(entry.adapter, entry.digest, entry.generated_tokens) for entry in stats.adapter_tokens} == {
        ("test/lora", lora, 10),
        ("test/prefix", prefix, 3),
        ("base", "", 5),
        ("other", "", 0),
    }


async def test_a_request_that_its_caller_gives_up_is_cancelled(home: Home) -> None:
    async with serve(home) as served:
        stream = served.client.stream(token_ids=PROMPT, max_new_tokens=200, ignore_eos=True)
        await anext(stream)
        during = await served.client.stats()
        await stream.aclose()
        after = during
        while after.requests.in_flight or not after.engine.cancelled:
            await asyncio.sleep(0.01)
            after = await served.client.stats()
    assert (during.requests.in_flight, during.requests.ended) == (1, {})
    assert (after.requests.ended, after.engine.cancelled, after.engine.finished) == ({"CANCELLED": 1}, 1, 0)
    assert after.requests.first_token_s.count == 1


async def test_loads_merges_and_places_are_counted(home: Home) -> None:
    async with serve(home) as served:
        client = served.client
        lora, qalora = await client.load("test/lora"), await client.load("test/qalora:production")
        await served.ask("test/lora")
        with pytest.raises(errors.NotFoundError):
            await client.load("test/nobody")
        await client.merge("test/lora")
        merged = await client.stats()
        await client.merge("test/qalora")
        await client.unmerge()
        await client.unload("test/lora")
        stats = await client.stats()
    assert merged.merging.merged_digest == lora.digest
    assert merged.memory.overlay_bytes > 0
    assert merged.residency.tiers["host"].adapters == 2
    assert merged.residency.tiers["host"].bytes == lora.resident_bytes + qalora.resident_bytes
    assert "disk" not in merged.residency.tiers

    # What no reference names is not a load that failed.
    assert (stats.residency.loads, stats.residency.load_s.count, stats.residency.load_failures) == (2, 2, 0)
    assert (stats.merging.merges, stats.merging.unmerges, stats.merging.switches) == (2, 1, 3)
    assert stats.merging.build_s.count == 2
    assert stats.merging.merged_digest == ""
    assert {name: tier.adapters for name, tier in stats.residency.tiers.items()} == {"host": 1, "disk": 1}
    assert stats.memory.adapter_bytes == qalora.resident_bytes
    assert stats.memory.disk_bytes > stats.residency.tiers["disk"].bytes


async def test_an_adapter_that_does_not_load_is_counted_as_such(home: Home) -> None:
    for weights in home.root.rglob("sha256/*/*"):
        weights.chmod(0o600)
        weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    async with serve(home) as served:
        with pytest.raises(errors.CorruptionError):
            await served.ask("test/lora")
        stats = await served.client.stats()
    assert (stats.residency.loads, stats.residency.load_failures) == (0, 1)
    assert stats.requests.ended == {"DATA_LOSS": 1}


async def test_what_leaves_memory_is_an_eviction_and_its_tokens_are_counted_among_the_others(home: Home) -> None:
    async with serve(home) as first:
        size = (await first.client.load("test/lora")).resident_bytes
    async with serve(home, adapter_bytes=size + size // 2) as served:
        await served.ask("test/lora", tokens=4)
        await served.ask("test/prefix", tokens=2)
        both = await served.client.stats()
        while both.residency.evictions == 0 and both.residency.loads < 3:
            await served.ask("test/qalora", tokens=1)
            both = await served.client.stats()
        gone = {entry.adapter: entry.generated_tokens for entry in both.adapter_tokens}
        await served.ask("test/lora", tokens=3)
        back = {entry.adapter: entry.generated_tokens for entry in (await served.client.stats()).adapter_tokens}
    assert both.residency.evictions >= 1
    assert "test/lora" not in gone
    assert gone["other"] >= 4
    assert back["test/lora"] == 3, "an adapter that comes back begins at 0"
    assert back["other"] >= gone["other"], "a counter never falls"
    assert sum(back.values()) == 4 + 2 + 1 + 3


async def test_ps_says_how_many_of_the_tokens_are_an_adapters(home: Home) -> None:
    async with serve(home) as served:
        await served.ask("test/lora", tokens=6)
        await served.ask("", tokens=2)
        residency = await served.client.resident()
    (adapter,) = residency.adapters
    assert (adapter.generated_tokens, residency.generated_tokens) == (6, 8)


async def test_prometheus_reads_what_get_stats_answers(home: Home) -> None:
    async with serve(home) as served:
        for adapter in ("test/lora", "test/lora", "", "test/prefix"):
            await served.ask(adapter)
        with pytest.raises(errors.NotFoundError):
            await served.ask("test/nobody")
        merge = await served.client.merge("test/lora")
        families, stats = await served.scrape(), await served.client.stats()
        quoted = await served.client.model_info()
    check_counters(families, stats)
    check_gauges(families, stats)
    check_histograms(families, stats)
    (build,) = families["weft_build_info"].samples
    assert build.labels["base"] == quoted.base_name
    assert build.labels["version"] == quoted.server_version
    (merged,) = families["weft_adapter_merged"].samples
    assert merged.labels == {"adapter": "test/lora", "digest": merge.adapter_digest}
    resident = {s.labels["adapter"]: s.labels["tier"] for s in families["weft_adapter_resident"].samples}
    assert resident == {"test/lora": "host", "test/prefix": "host"}
    assert families["weft_start_time_seconds"].samples[0].value == pytest.approx(stats.started_at.timestamp())


def values(family: Metric) -> dict[str, float]:
    """A family's values by its only label."""
    return {next(iter(sample.labels.values()), ""): sample.value for sample in family.samples}


def check_counters(families: dict[str, Metric], stats: ServerStats) -> None:
    engine, residency, merging = stats.engine, stats.residency, stats.merging
    expected: dict[str, dict[str, float]] = {
        "weft_requests": dict(stats.requests.ended),
        "weft_steps": {"": engine.steps},
        "weft_prompt_tokens": {"": engine.prompt_tokens},
        "weft_cached_tokens": {"": engine.cached_tokens},
        "weft_generated_tokens": {"": engine.generated_tokens},
        "weft_preemptions": {"": engine.preemptions},
        "weft_engine_requests": {
            "finished": engine.finished,
            "failed": engine.failed,
            "cancelled": engine.cancelled,
        },
        "weft_prefix_tokens": {
            "hit": stats.key_values.prefix_hit_tokens,
            "miss": stats.key_values.prefix_miss_tokens,
        },
        "weft_adapter_loads": {"": residency.loads},
        "weft_adapter_load_failures": {"": residency.load_failures},
        "weft_adapter_evictions": {"": residency.evictions},
        "weft_adapter_reloads": {"": residency.reloads},
        "weft_merges": {"": merging.merges},
        "weft_unmerges": {"": merging.unmerges},
        "weft_adapter_tokens": {entry.adapter: entry.generated_tokens for entry in stats.adapter_tokens},
    }
    counters = {name: family for name, family in families.items() if family.type == "counter"}
    assert {name: values(family) for name, family in counters.items()} == expected
    assert all(sample.name == f"{name}_total" for name, family in counters.items() for sample in family.samples)


def check_gauges(families: dict[str, Metric], stats: ServerStats) -> None:
    engine, blocks, memory = stats.engine, stats.key_values, stats.memory
    expected: dict[str, dict[str, float]] = {
        "weft_requests_in_flight": {"": stats.requests.in_flight},
        "weft_running_requests": {"": engine.running},
        "weft_waiting_requests": {"": engine.waiting},
        "weft_active_adapters": {"": engine.active_adapters},
        "weft_kv_blocks": {
            "used": blocks.used_blocks,
            "cached": blocks.cached_blocks,
            "free": blocks.total_blocks - blocks.used_blocks - blocks.cached_blocks,
        },
        "weft_adapters": {name: tier.adapters for name, tier in stats.residency.tiers.items()},
        "weft_adapter_bytes": {name: tier.bytes for name, tier in stats.residency.tiers.items()},
        "weft_quarantined_adapters": {"": stats.residency.quarantined},
        "weft_overlays": {"": stats.merging.overlays},
        "weft_memory_bytes": {
            "base": memory.base_bytes,
            "key_values": memory.key_value_used_bytes,
            "adapters": memory.adapter_bytes,
            "packs": memory.pack_bytes,
            "overlays": memory.overlay_bytes,
        },
        "weft_memory_limit_bytes": {
            "key_values": memory.key_value_limit_bytes,
            "adapters": memory.adapter_limit_bytes,
            "overlays": memory.overlay_limit_bytes,
        },
        "weft_disk_bytes": {"": memory.disk_bytes},
        "weft_disk_limit_bytes": {"": memory.disk_limit_bytes},
    }
    elsewhere = {"weft_build_info", "weft_start_time_seconds", "weft_adapter_resident", "weft_adapter_merged"}
    gauges = {name: family for name, family in families.items() if family.type == "gauge"}
    assert {name: values(family) for name, family in gauges.items() if name not in elsewhere} == expected
    assert gauges.keys() >= elsewhere
    assert memory.overlay_bytes > 0


def check_histograms(families: dict[str, Metric], stats: ServerStats) -> None:
    requests, engine, merging = stats.requests, stats.engine, stats.merging
    expected = {
        "weft_request_duration_seconds": requests.duration_s,
        "weft_request_first_token_seconds": requests.first_token_s,
        "weft_request_inter_token_seconds": requests.inter_token_s,
        "weft_request_queue_seconds": requests.queue_s,
        "weft_step_duration_seconds": engine.step_s,
        "weft_step_rows": engine.step_rows,
        "weft_adapter_load_duration_seconds": stats.residency.load_s,
        "weft_merge_build_seconds": merging.build_s,
        "weft_merge_switch_seconds": merging.switch_s,
    }
    found = {name: as_histogram(family) for name, family in families.items() if family.type == "histogram"}
    assert found == expected
    assert all(histogram.count for histogram in expected.values())


def as_histogram(family: Metric) -> Histogram:
    """Prometheus adds buckets up; this takes them apart again."""
    rising = [(float(s.labels["le"]), s.value) for s in family.samples if s.name.endswith("_bucket")]
    bounds, below = zip(*rising, strict=True)
    assert bounds[-1] == math.inf
    (total,) = [s.value for s in family.samples if s.name.endswith("_sum")]
    (count,) = [s.value for s in family.samples if s.name.endswith("_count")]
    assert count == below[-1]
    counts = tuple(int(now - before) for before, now in zip((0, *below), below, strict=False))
    return Histogram(bounds[:-1], counts, total)


async def test_the_page_names_every_metric_and_no_other(home: Home) -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    rows = dict(re.findall(r"^\| `(weft_\w+)` \| (\w+) \|", page, re.MULTILINE))
    async with serve(home) as served:
        await served.ask("test/lora")
        families = await served.scrape()
    suffix = {"counter": "_total"}
    exported = {name + suffix.get(family.type, ""): family.type for name, family in families.items()}
    assert rows == exported
    spoken_of = set(re.findall(r"\bweft_\w+", page))
    series = {sample.name for family in families.values() for sample in family.samples} | exported.keys()
    assert spoken_of <= series | {"weft_adapter_merged"}, spoken_of - series


async def test_a_taken_metrics_port_keeps_the_server_from_starting(home: Home) -> None:
    async with serve(home) as served:
        taken = int(served.metrics.rpartition(":")[2])
        with pytest.raises(errors.UnavailableError, match=f"127.0.0.1:{taken} for metrics"):
            async with serve(home, metrics_port=taken):
                pass
        assert (await served.client.stats()).uptime_s > 0


async def test_without_the_option_there_is_no_such_port(home: Home) -> None:
    (base,) = [path.name for path in home.bases.iterdir()]
    async with running(ServeOptions(base=base, home=home, port=0, dtype="float32", copies="never")) as server:
        assert server.metrics_address is None
