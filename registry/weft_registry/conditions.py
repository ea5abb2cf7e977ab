"""Conditions on a version's metrics: `exact_match >= 0.8 and loss < 1.2`.

The whole language: NAME OP NUMBER, joined by `and`. OP is one of >= > <= < == !=. A NAME may name
a part of the data, as manifests do: `loss[nli.jsonl (unseen templates)]`. Nothing is evaluated as Python.
Numbers are compared as decimals, exactly as the manifest and the condition write them.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from weft_registry.errors import InvalidInputError
from weft_registry.manifest import Metric
from weft_registry.names import nearest

OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
"""Of decimals, and of columns in SQL."""
_CLAUSE = re.compile(
    r"\s*(?P<name>[A-Za-z_][A-Za-z0-9_.-]*(?:\[[^\[\]]*\])?)\s*(?P<op>>=|<=|==|!=|>|<)\s*"
    r"(?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?)(?=\s|$)"
)
_AND = re.compile(r"\s+and\b")


@dataclass(frozen=True)
class Clause:
    """One comparison."""

    name: str
    op: str
    number: Decimal


@dataclass(frozen=True)
class Outcome:
    """A clause, and what it found."""

    clause: Clause
    value: Decimal
    """The metric's value."""
    holds: bool

    def describe(self) -> str:
        """One line for people: "exact_match = 0.75 >= 0.8: does not hold"."""
        verdict = "holds" if self.holds else "does not hold"
        return f"{self.clause.name} = {self.value} {self.clause.op} {self.clause.number}: {verdict}"


def parse(text: str) -> list[Clause]:
    """The clauses of a condition. Raises `InvalidInputError` naming the part that is none."""
    clauses: list[Clause] = []
    at = 0
    while True:
        match = _CLAUSE.match(text, at)
        if match is None:
            raise InvalidInputError(
                f"condition {text!r}: {text[at:].strip()!r} does not begin with NAME OP NUMBER, OP one of "
                f"{' '.join(OPERATORS)}, such as 'exact_match >= 0.8'; several are joined by `and`"
            )
        clauses.append(Clause(match["name"], match["op"], Decimal(match["number"])))
        joined = _AND.match(text, match.end())
        if joined is None:
            break
        at = joined.end()
    if text[match.end() :].strip():
        raise InvalidInputError(
            f"condition {text!r}: {text[match.end() :].strip()!r} after NAME OP NUMBER; several are joined by `and`"
        )
    return clauses


def check(clauses: Sequence[Clause], metrics: Sequence[Metric]) -> list[Outcome]:
    """Every clause on its metric.

    Raises `InvalidInputError` for a metric that is not there (naming those that are), that is no number, or that was
    measured more than once with different results.
    """
    return [_check(clause, metrics) for clause in clauses]


def _check(clause: Clause, metrics: Sequence[Metric]) -> Outcome:
    found = {metric.value for metric in metrics if metric.name == clause.name}
    if not found:
        names = sorted({metric.name for metric in metrics})
        near = nearest(clause.name, names, most=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        there = f"it has {', '.join(names)}" if names else "it has none: train or evaluate with held-out data"
        raise InvalidInputError(f"the version has no metric {clause.name!r}: {there}{hint}", reason="METRIC_NOT_FOUND")
    try:
        values = {Decimal(value) for value in found}
    except InvalidOperation:
        raise InvalidInputError(f"the metric {clause.name} is {found.pop()!r}, which is no number") from None
    if len(values) > 1:
        shown = ", ".join(sorted(found))
        raise InvalidInputError(f"the version has the metric {clause.name} several times: {shown}")
    value = values.pop()
    if value.is_nan():
        raise InvalidInputError(f"the metric {clause.name} is NaN, which compares with nothing")
    return Outcome(clause, value, bool(OPERATORS[clause.op](value, clause.number)))
