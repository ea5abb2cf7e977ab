"""What the benchmarks compare, and what they send."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from benchmarks.decode_cells import CELLS
from benchmarks.samples import Prompts, Samples, popularity
from benchmarks.traffic import Arrival, Outcome, poisson


def test_a_ratio_is_the_median_of_the_repeats_own_ratios() -> None:
    samples = Samples()
    for value, against in ((10.0, 5.0), (9.0, 9.0), (40.0, 10.0)):
        samples.add("ours", value, against)
    row = samples.row("ours", "tokens/s", "theirs")
    assert (row.value, row.ratio, row.baseline) == (10.0, 2.0, "theirs")


def test_a_figure_that_was_not_compared_has_no_ratio() -> None:
    samples = Samples()
    samples.add("alone", 3.0)
    assert samples.row("alone", "ms").ratio is None


def test_popularity_gives_every_row_an_adapter_that_exists() -> None:
    assert popularity("even", 5, 2) == [0, 1, 0, 1, 0]
    assert popularity("half", 6, 3) == [0, 1, 0, 2, 0, 1]
    drawn = Counter(popularity("zipf", 4000, 4))
    assert [adapter for adapter, _ in drawn.most_common()] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="even, half or zipf"):
        popularity("uniform", 1, 1)


def test_no_prompt_comes_twice() -> None:
    prompts = Prompts(1000, seed=0)
    seen = [tuple(prompt) for _ in range(3) for prompt in prompts.batch(4, 16)]
    assert len(set(seen)) == 12
    assert all(len(prompt) == 16 for prompt in seen)


def test_cells_have_names_of_their_own_and_fit_their_batch() -> None:
    assert len({cell.metric for cell in CELLS}) == len(CELLS)
    for cell in CELLS:
        assert cell.metric.endswith(f"_over_{cell.baseline}")
        assert cell.adapters * len(cell.kinds) <= cell.batch or cell.adapters == 1


def test_the_same_requests_arrive_at_the_same_times_whatever_is_registered() -> None:
    few = poisson(20, 3, ["a", "b"], 1000, seed=4)
    many = poisson(20, 3, [str(index) for index in range(50)], 1000, seed=4)
    assert [(a.at_s, a.prompt, a.new_tokens) for a in few] == [(a.at_s, a.prompt, a.new_tokens) for a in many]
    assert all(a.at_s < b.at_s < 3 for a, b in pairwise(few))
    assert {a.adapter for a in few} == {"a", "b"}


def test_gaps_are_taken_within_a_span() -> None:
    outcome = Outcome(Arrival(0.0, "", (1,), 4), 1.0, [(2.0, 1), (3.0, 1), (5.0, 2), (9.0, 1)])
    assert outcome.first_token_s == 1.0
    assert outcome.gaps_s() == [1.0, 2.0, 4.0]
    assert outcome.gaps_s(3.0, 9.0) == [2.0]
