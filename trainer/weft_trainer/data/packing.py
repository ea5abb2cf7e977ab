"""The rows of a whole run, decided before it begins: which examples each forward pass gets, packed or not."""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from weft_trainer.data.mixing import Mixture


@dataclass(frozen=True)
class Plan:
    """The rows that training reads, in order."""

    rows: tuple[tuple[int, ...], ...]
    """The examples of each row; one without packing."""
    steps: int
    """Optimizer steps that read all of them."""
    filled: float
    """Mean share of a row's room that examples take; 0 without packing."""


def plan(
    mixture: Mixture,
    lengths: Sequence[int],
    capacity: int | None,
    seed: int,
    *,
    rows_per_step: int,
    steps: int | None,
    epochs: float,
) -> Plan:
    """The rows of `steps` steps, or of `epochs` epochs where that is None.

    `lengths` are all examples' tokens; with a `capacity`, each epoch's examples are packed into rows of so many.
    """
    rows: list[tuple[int, ...]] = []
    order = random.Random(f"{seed}/rows")
    for number, drawn in enumerate(mixture.epochs(seed)):
        if steps is None:
            # The last epoch may be a part of one.
            drawn = drawn[: round(len(drawn) * min(1.0, epochs - number))]
        rows += pack(drawn, lengths, capacity, order) if capacity is not None else [(index,) for index in drawn]
        if len(rows) >= (steps or 0) * rows_per_step if steps is not None else number + 1 >= epochs:
            break
    if steps is not None:
        rows = rows[: steps * rows_per_step]
    used = sum(lengths[index] for row in rows for index in row)
    filled = used / (len(rows) * capacity) if capacity is not None else 0.0
    return Plan(tuple(rows), math.ceil(len(rows) / rows_per_step), filled)


def pack(drawn: Sequence[int], lengths: Sequence[int], capacity: int, order: random.Random) -> list[tuple[int, ...]]:
    """Rows of at most `capacity` tokens, in random order: best-fit decreasing, which wastes little.

    The longest example first, each into the fullest row that has room for it (no row is open that could not take one
    token more). Equal lengths keep the order they were drawn in, so that epochs differ.
    """
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    rooms: list[int] = []
    for index in sorted(drawn, key=lambda i: -lengths[i]):
        length = lengths[index]
        at = bisect.bisect_left(rooms, length)
        if at == len(rooms):
            number, room = len(rows), capacity
            rows.append([])
        else:
            room = rooms[at]
            number = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[at]
        rows[number].append(index)
        left = room - length
        if left > 0:
            if left not in by_room:
                by_room[left] = []
                bisect.insort(rooms, left)
            by_room[left].append(number)
    for row in rows:
        order.shuffle(row)
    order.shuffle(rows)
    return [tuple(row) for row in rows]
