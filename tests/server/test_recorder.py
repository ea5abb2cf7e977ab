"""Counting without an engine: buckets against counting one by one, calls by how they ended."""

import asyncio
import bisect
import itertools
import math
import random
from contextlib import nullcontext

import pytest

from weft_registry import errors
from weft_server.histogram import Buckets, scale
from weft_server.recorder import RequestRecorder, ResidencyRecorder


def test_buckets_count_as_a_loop_over_the_values_does() -> None:
    values, bounds = [random.Random(1).expovariate(1.0) for _ in range(500)] + [0.5, 2.0], (0.1, 0.5, 1.0, 2.0)
    buckets = Buckets(bounds)
    for value in values:
        buckets.observe(value)
    histogram = buckets.snapshot()
    edges = [-math.inf, *bounds, math.inf]
    expected = [sum(low < value <= high for value in values) for low, high in itertools.pairwise(edges)]
    assert list(histogram.counts) == expected
    assert histogram.count == len(values)
    assert histogram.total == pytest.approx(sum(values))
    assert bisect.bisect_left(bounds, 0.5) == 1, "a value equal to a bound is in that bound's bucket"


def test_a_snapshot_does_not_change_afterwards() -> None:
    buckets = Buckets((1.0,))
    before = buckets.snapshot()
    buckets.observe(0.5)
    assert before.count == 0
    assert buckets.snapshot().counts == (1, 0)


def test_a_scale_goes_in_steps_of_1_2_5() -> None:
    assert scale(0.01, 0.5) == (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    for first, last in ((0.03, 1.0), (0.01, 0.3), (1.0, 0.1), (1.0, 1.0)):
        with pytest.raises(ValueError, match="1, 2 or 5 times"):
            scale(first, last)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, "OK"),
        (errors.NotFoundError("gone"), "NOT_FOUND"),
        (errors.ExhaustedError("full"), "RESOURCE_EXHAUSTED"),
        (errors.UnavailableError("ended"), "UNAVAILABLE"),
        (asyncio.CancelledError(), "CANCELLED"),
        (GeneratorExit(), "CANCELLED"),
        (KeyError("a bug"), "INTERNAL"),
    ],
)
def test_a_call_is_counted_by_what_ends_it(error: BaseException | None, code: str) -> None:
    recorder = RequestRecorder()
    # The record watches what passes; it holds nothing back.
    with nullcontext() if error is None else pytest.raises(type(error)), recorder.call():
        assert recorder.snapshot().in_flight == 1
        assert recorder.snapshot().ended == {}
        if error is not None:
            raise error
    stats = recorder.snapshot()
    assert stats.ended == {code: 1}
    assert (stats.in_flight, stats.duration_s.count) == (0, 1)


def test_the_first_token_is_measured_from_arrival_and_the_others_from_the_one_before() -> None:
    recorder = RequestRecorder()
    first, second = recorder.call(), recorder.call()
    for after in (0.25, 0.5, 1.5):
        first.token(first.arrived + after)
    second.token(second.arrived + 0.125)
    stats = recorder.snapshot()
    assert stats.first_token_s.count == 2
    assert stats.first_token_s.total == pytest.approx(0.375)
    assert stats.inter_token_s.count == 2
    assert stats.inter_token_s.total == pytest.approx(1.25)


def test_loads_and_switches_are_as_many_as_their_times() -> None:
    recorder = ResidencyRecorder()
    recorder.loaded(0.5)
    recorder.load_failed()
    recorder.evicted()
    recorder.reloaded()
    recorder.merged(2.0, 0.001)
    recorder.merged(0.0, 0.002)
    recorder.unmerged(0.003)
    counts = recorder.snapshot()
    assert (counts.loads, counts.load_failures, counts.evictions, counts.reloads) == (1, 1, 1, 1)
    assert (counts.merges, counts.unmerges, counts.switch_s.count) == (2, 1, 3)
    assert counts.build_s.total == 2.0
    assert counts.switch_s.total == pytest.approx(0.006)
