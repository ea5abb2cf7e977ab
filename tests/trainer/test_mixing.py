from __future__ import annotations

import itertools
from collections import Counter

import pytest

from weft_registry.errors import InvalidInputError
from weft_trainer.data.mixing import mixture


def test_without_weights_an_epoch_is_everything_once() -> None:
    mixed = mixture([3, 5])
    first, second = itertools.islice(mixed.epochs(0), 2)
    assert sorted(first) == sorted(second) == list(range(8))
    assert first != second, "each epoch in another order"


def test_weights_share_out_an_epoch_as_long_as_all_files() -> None:
    mixed = mixture([90, 10], [1, 1])
    assert mixed.draws == (50, 50)
    first, second = itertools.islice(mixed.epochs(0), 2)
    small = Counter(index for index in first if index >= 90)
    assert set(small.values()) == {5}, "a small file is gone through again and again, evenly"
    drawn = [index for index in (*first, *second) if index < 90]
    assert len(drawn) == 100
    assert set(drawn) == set(range(90)), "a large file is gone through over the border of epochs"


def test_shares_are_rounded_to_the_whole_epoch() -> None:
    assert mixture([4, 3, 3], [1, 1, 1]).draws == (4, 3, 3)
    assert sum(mixture([7, 7, 7], [0.3, 0.3, 0.9]).draws) == 21


def test_flans_maximum_caps_what_a_file_counts() -> None:
    mixed = mixture([1000, 30, 10], maximum=30)
    assert mixed.draws == (30, 30, 10)
    (epoch,) = itertools.islice(mixed.epochs(0), 1)
    assert sum(index < 1000 for index in epoch) == 30
    over = [index for epoch in itertools.islice(mixed.epochs(0), 34) for index in epoch if index < 1000]
    assert set(over) == set(range(1000)), "every epoch draws others, until all were drawn"


def test_the_draws_depend_on_the_seed_alone() -> None:
    mixed = mixture([20, 20], [1, 3])
    assert list(itertools.islice(mixed.epochs(1), 3)) == list(itertools.islice(mixed.epochs(1), 3))
    assert next(mixed.epochs(1)) != next(mixed.epochs(2))


def test_a_weight_that_draws_nothing_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"data\.train\[1\]\.weight: 0\.001"):
        mixture([50, 50], [1, 0.001])
