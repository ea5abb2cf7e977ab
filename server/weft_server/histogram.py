"""Counting how often values fall into fixed buckets: cheap to feed, cheap to copy. It knows no units and no clock."""

from __future__ import annotations

from bisect import bisect_left

from weft_server.stats import Histogram


class Buckets:
    """Owns the counts that a `Histogram` is a copy of. One thread feeds it and copies it."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        assert bounds, "no bounds"
        assert list(bounds) == sorted(set(bounds)), "bounds rise"
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        """Counts one value. A value equal to a bound is in that bound's bucket."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def snapshot(self) -> Histogram:
        """A copy."""
        return Histogram(self._bounds, tuple(self._counts), self._total)


def scale(first: float, last: float) -> tuple[float, ...]:
    """Bounds from `first` up to `last` in the steps 1, 2, 5, 10: about a factor of two from one to the next.

    Raises `ValueError` unless both are such numbers, in this order.
    """
    steps = [float(f"{digit}e{exponent}") for exponent in range(-9, 10) for digit in (1, 2, 5)]
    if first not in steps or last not in steps or first >= last:
        raise ValueError(f"no bounds from {first:g} to {last:g}: both must be 1, 2 or 5 times a power of ten, rising")
    return tuple(step for step in steps if first <= step <= last)
