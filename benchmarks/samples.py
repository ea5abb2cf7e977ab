"""Interleaved repeats of several sides, and what they say; and the inputs that the sides share."""

from __future__ import annotations

import torch

from benchmarks.report import Row, median_and_spread


class Samples:
    """Figures by name, one for each repeat. Ratios are taken within a repeat: a slow minute is slow for both sides."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}
        self._ratios: dict[str, list[float]] = {}

    def add(self, name: str, value: float, against: float | None = None) -> None:
        """Notes one repeat's figure, and what it is compared with."""
        self._values.setdefault(name, []).append(value)
        if against is not None:
            self._ratios.setdefault(name, []).append(value / against)

    def row(self, name: str, unit: str, baseline: str = "") -> Row:
        """The median of a figure; where it was compared, the median of the repeats' own ratios and their spread."""
        value, spread = median_and_spread(self._values[name])
        if name not in self._ratios:
            return Row(name, value, unit, spread=spread)
        ratio, spread = median_and_spread(self._ratios[name])
        return Row(name, value, unit, baseline, ratio, spread)


class Prompts:
    """Random prompts, none of which ever comes twice: a cache of prefixes must not make any side look fast."""

    def __init__(self, vocabulary_size: int, seed: int) -> None:
        self._size = vocabulary_size
        self._generator = torch.Generator().manual_seed(seed)

    def batch(self, count: int, length: int) -> list[list[int]]:
        """`count` prompts of `length` tokens."""
        # The first hundred ids are special tokens in many vocabularies.
        tokens: list[list[int]] = torch.randint(100, self._size, (count, length), generator=self._generator).tolist()
        return tokens


def popularity(kind: str, count: int, adapters: int) -> list[int]:
    """Which of `adapters` each of `count` rows wears.

    "even": they take turns. "zipf": drawn, the k-th most popular with weight 1 / k. "half": every other row the first
    one, and the rest take turns through the others. Raises `ValueError` for another word.
    """
    if kind == "even":
        return [row % adapters for row in range(count)]
    if kind == "half":
        return [1 + row // 2 % (adapters - 1) if row % 2 else 0 for row in range(count)]
    if kind == "zipf":
        return zipf(count, adapters, torch.Generator().manual_seed(0))
    raise ValueError(f"popularity {kind!r}: expected even, half or zipf")


def zipf(count: int, adapters: int, generator: torch.Generator) -> list[int]:
    """`count` draws from `adapters`, the k-th most popular with weight 1 / k."""
    weights = 1.0 / torch.arange(1, adapters + 1, dtype=torch.float64)
    drawn: list[int] = torch.multinomial(weights, count, replacement=True, generator=generator).tolist()
    return drawn
