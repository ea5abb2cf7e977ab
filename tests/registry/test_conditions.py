from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft_registry import conditions
from weft_registry.conditions import Clause
from weft_registry.errors import InvalidInputError
from weft_registry.manifest import Metric

DATA = "sha256:" + "11" * 32


def metric(name: str, value: str) -> Metric:
    return Metric(name, value, DATA, "eval")


def holds(text: str, *metrics: Metric) -> bool:
    return all(outcome.holds for outcome in conditions.check(conditions.parse(text), metrics))


@pytest.mark.parametrize("op", [">=", ">", "<=", "<", "==", "!="])
@pytest.mark.parametrize("value", ["0.7", "0.8", "0.80", "0.9"])
def test_every_operator_compares_as_it_does_on_numbers(op: str, value: str) -> None:
    expected = {
        ">=": Decimal(value) >= Decimal("0.8"),
        ">": Decimal(value) > Decimal("0.8"),
        "<=": Decimal(value) <= Decimal("0.8"),
        "<": Decimal(value) < Decimal("0.8"),
        "==": Decimal(value) == Decimal("0.8"),
        "!=": Decimal(value) != Decimal("0.8"),
    }[op]
    assert holds(f"exact_match {op} 0.8", metric("exact_match", value)) is expected
    assert holds(f"exact_match{op}.8", metric("exact_match", value)) is expected


def test_a_decimal_is_not_rounded_to_a_binary_fraction() -> None:
    assert holds("a == 0.3", metric("a", "0.3"))
    assert not holds("a >= 0.30000000000000001", metric("a", "0.3"))


def test_and_asks_for_all() -> None:
    both = (metric("exact_match", "0.9"), metric("loss", "1.1"))
    assert holds("exact_match >= 0.8 and loss < 1.2", *both)
    assert not holds("exact_match >= 0.8 and loss < 1.0", *both)
    assert not holds("exact_match >= 0.95  and  loss < 1.2", *both)


def test_a_metrics_name_may_hold_and() -> None:
    assert holds("brand >= 1 and android.score == 2e1", metric("brand", "1"), metric("android.score", "20"))


def test_a_metric_of_a_part_of_the_data_is_named_with_it() -> None:
    part = metric("loss[rock and roll >= 2.jsonl (unseen)]", "1.5")
    assert holds("loss[rock and roll >= 2.jsonl (unseen)] < 2 and loss < 9", part, metric("loss", "3"))


@pytest.mark.parametrize(
    "text",
    ["", "exact_match", "exact_match >=", ">= 0.8", "exact_match => 0.8", "0.8 <= exact_match", "a >= 1 or b >= 1",
     "a >= 1 and", "a >= b", "a >= 1, b >= 2", "a = 1", "a >= 1e9999", "not a >= 1", "(a >= 1)", "__import__('os')",
     "a >= nan", "a >= 0x10", "a.b.c() >= 1"],
)  # fmt: skip
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="NAME OP NUMBER"):
        conditions.parse(text)


@given(st.text(max_size=60))
def test_any_text_is_a_condition_or_refused(text: str) -> None:
    try:
        clauses = conditions.parse(text)
    except InvalidInputError:
        return
    assert clauses
    assert all(isinstance(clause, Clause) and clause.number.is_finite() for clause in clauses)


def test_a_metric_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(InvalidInputError, match=r"it has exact_match, loss; did you mean exact_match\?"):
        holds("exact_mach >= 0.8", metric("loss", "1"), metric("exact_match", "1"))
    with pytest.raises(InvalidInputError, match="it has none"):
        holds("loss >= 0.8")


def test_a_metric_that_cannot_be_compared_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="no number"):
        holds("loss >= 0.8", metric("loss", "good"))
    with pytest.raises(InvalidInputError, match="NaN"):
        holds("loss >= 0.8", metric("loss", "NaN"))
    with pytest.raises(InvalidInputError, match=r"several times: 1\.0, 2\.0"):
        holds("loss >= 0.8", metric("loss", "1.0"), metric("loss", "2.0"))
    assert holds("loss >= 0.8", metric("loss", "1.0"), metric("loss", "1.00"))
