"""From parts to tensors: whose row is where, and what stays the same from step to step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.subjects import random_adapter
from tests.tiny_models import AddedBase
from weft_adapters.kinds.kind import Adapter
from weft_server.engine import EngineRequest, Sampling
from weft_server.torch_engine.assemble import Assembler
from weft_server.torch_engine.deltas import ActiveAdapters
from weft_server.torch_engine.overlay import Overlay
from weft_server.torch_engine.scheduler import Part
from weft_server.torch_engine.sequence import Sequence


@pytest.fixture
def adapters(tiny_base: Callable[..., AddedBase]) -> dict[str, Adapter[Any]]:
    spec = tiny_base().stored.spec
    wanted = (("lora", 1), ("lora", 2), ("lora", 3), ("qalora", 1), ("prefix", 1))
    return {f"{kind}{seed}": random_adapter(kind, spec, seed).bound(torch.float32) for kind, seed in wanted}


def part(adapter: Adapter[Any] | None, prompt: list[int], cached: int, count: int) -> Part:
    request = EngineRequest("r", tuple(prompt), adapter, Sampling(), 4, 0, frozenset(), None)
    sequence = Sequence(request, adapter)
    sequence.num_cached = sequence.num_virtual + cached
    sequence.blocks = list(range(10))
    return Part(sequence, count, samples=cached + count == len(prompt))


def test_rows_are_grouped_by_wearer_and_every_span_has_its_own(adapters: dict[str, Adapter[Any]]) -> None:
    merged, worn, prefix = adapters["lora1"], adapters["lora2"], adapters["prefix1"]
    parts = [
        part(None, [1, 2, 3], 2, 1),
        part(merged, [4, 5], 1, 1),
        part(worn, [6, 7, 8, 9], 1, 2),
        part(prefix, [10, 11], 0, 2),
        part(merged, [12, 13, 14], 0, 3),
    ]
    active = ActiveAdapters()
    step, ordered = Assembler(active, torch.device("cpu")).assemble(parts, Overlay(merged, {}))
    assert step.num_merged == 4
    assert step.token_T.tolist() == [5, 12, 13, 14, 7, 8, 10, 11, 3]
    virtual = parts[3].sequence.num_virtual
    assert step.position_T.tolist() == [1, 0, 1, 2, 1, 2, virtual, virtual + 1, 2]
    wearers = [-1] * 4 + [active.index(worn.digest)] * 2 + [active.index(prefix.digest)] * 2 + [-1]
    assert step.segments.adapter_T.tolist() == wearers
    assert [(span.rows, span.start) for span in step.spans] == [
        (slice(0, 1), 1),
        (slice(1, 4), 0),
        (slice(4, 6), 1),
        (slice(6, 8), virtual),
        (slice(8, 9), 2),
    ]
    assert step.last_S.tolist() == [0, 3, 5, 7, 8]
    assert [p.sequence for p in ordered] == [parts[i].sequence for i in (1, 4, 2, 3, 0)]


def test_segments_are_kept_while_rows_and_wearers_stay_the_same(adapters: dict[str, Adapter[Any]]) -> None:
    assembler = Assembler(ActiveAdapters(), torch.device("cpu"))
    two = [part(adapters["lora1"], [1, 2], 1, 1), part(None, [3, 4], 1, 1)]
    first, _ = assembler.assemble(two, None)
    again, _ = assembler.assemble(list(reversed(two)), None)
    assert again.segments is first.segments
    other, _ = assembler.assemble([part(adapters["lora2"], [1, 2], 1, 1), *two], None)
    assert other.segments.counts == {0: 1, 1: 1}


def test_an_index_stays_while_others_come_and_go(adapters: dict[str, Adapter[Any]]) -> None:
    one, two, three, q, p = adapters.values()
    active = ActiveAdapters()
    active.activate([one, two, three])
    version = active.version
    active.activate([two])
    assert (list(active.adapters), active.version) == ([one, two, three], version)
    active.activate([two, q])
    assert active.version > version
    assert list(active.adapters) == [q, two]
    active.activate([two, q, p, three])
    assert [active.index(a.digest) for a in (q, two, p, three)] == [0, 1, 2, 3]
    active.forget(q.digest)
    assert list(active.adapters) == [None, two, p, three]
    version = active.version
    active.forget(q.digest)
    assert active.version == version
