"""Which examples an epoch draws from which file, and in what order: decided by sizes, weights and a seed alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from weft_registry.errors import InvalidInputError


@dataclass(frozen=True)
class Mixture:
    """Several files' examples, numbered through: file 0's first, then file 1's."""

    sizes: tuple[int, ...]
    """Examples in each file."""
    draws: tuple[int, ...]
    """How many of them an epoch draws."""

    def epochs(self, seed: int) -> Iterator[list[int]]:
        """The examples of one epoch after another, each in a random order, without end.

        A file's examples are drawn without replacement until all have been, over the borders of epochs; then again, in
        another order. So an epoch that draws a third of a file has seen all of it after three.
        """
        starts = [sum(self.sizes[:i]) for i in range(len(self.sizes))]
        decks = [
            _deck(range(start, start + size), random.Random(f"{seed}/file/{number}"))
            for number, (start, size) in enumerate(zip(starts, self.sizes, strict=True))
        ]
        order = random.Random(f"{seed}/order")
        while True:
            drawn = [next(deck) for deck, count in zip(decks, self.draws, strict=True) for _ in range(count)]
            order.shuffle(drawn)
            yield drawn


def mixture(sizes: Sequence[int], weights: Sequence[float] | None = None, maximum: int | None = None) -> Mixture:
    """How an epoch mixes files of these sizes.

    With `weights`, an epoch is as long as all files together, shared out by weight (largest remainders). With
    `maximum`, a file counts as min(size, maximum), and an epoch draws so many of it: examples-proportional mixing with
    a maximum (arXiv:1910.10683, section 3.5.2; FLAN, arXiv:2109.01652, section 2.1). Otherwise an epoch is everything
    once. Raises `InvalidInputError` for a weight so small that an epoch would draw nothing of its file.
    """
    if weights is None:
        return Mixture(tuple(sizes), tuple(min(size, maximum or size) for size in sizes))
    total = sum(sizes)
    exact = [total * weight / sum(weights) for weight in weights]
    draws = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (draws[i] - exact[i], i))
    for index in by_remainder[: total - sum(draws)]:
        draws[index] += 1
    for index, count in enumerate(draws):
        if count == 0:
            raise InvalidInputError(
                f"data.train[{index}].weight: {weights[index]} of {sum(weights)} draws none of the {total} examples of "
                "an epoch; raise it, or leave the file out"
            )
    return Mixture(tuple(sizes), tuple(draws))


def _deck(numbers: Sequence[int], generator: random.Random) -> Iterator[int]:
    while True:
        cards = list(numbers)
        generator.shuffle(cards)
        yield from cards
