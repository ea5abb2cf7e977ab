"""The loss over the steps of a run, as a small PNG for its model card."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from weft_trainer.output.raster import Canvas, Color, text_width
from weft_trainer.training.history import History, Points

WIDTH, HEIGHT = 720, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 24, 40, 56
_INK, _GRID, _TRAIN, _HELD_OUT = (60, 60, 60), (225, 225, 225), (31, 119, 180), (214, 90, 20)
_MOST_POINTS = 400
"""More points than that are averaged: there are no more columns to show them in."""


def loss_curve(history: History) -> bytes | None:
    """The chart, or None without a single point."""
    train, held_out = _thinned(history.train), _thinned(history.held_out)
    points = [*train, *held_out]
    if not points:
        return None
    steps = _Axis.over(0, max(step for step, _ in points), 7)
    losses = _Axis.over(min(loss for _, loss in points), max(loss for _, loss in points), 6)
    canvas = Canvas(WIDTH, HEIGHT)
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM

    def at(step: float, loss: float) -> tuple[float, float]:
        return _LEFT + steps.share(step) * (right - _LEFT), bottom - losses.share(loss) * (bottom - _TOP)

    for loss in losses.ticks:
        y = at(0, loss)[1]
        canvas.line((_LEFT, y), (right, y), _GRID)
        label = losses.label(loss)
        canvas.text(_LEFT - 10 - text_width(label), int(y) - 6, label, _INK)
    for step in steps.ticks:
        x = at(step, losses.low)[0]
        canvas.line((x, bottom), (x, bottom + 5), _INK)
        label = steps.label(step)
        canvas.text(int(x) - text_width(label) // 2, bottom + 10, label, _INK)
    canvas.line((_LEFT, bottom), (right, bottom), _INK)
    canvas.line((_LEFT, _TOP), (_LEFT, bottom), _INK)
    canvas.text(right - text_width("step"), HEIGHT - 22, "step", _INK)
    canvas.text(_LEFT - text_width("loss") // 2, 12, "loss", _INK)
    _draw(canvas, [at(*point) for point in train], _TRAIN, dots=len(train) == 1)
    _draw(canvas, [at(*point) for point in held_out], _HELD_OUT, dots=True)
    _legend(canvas, right, [("train", _TRAIN, bool(train)), ("held out", _HELD_OUT, bool(held_out))])
    return canvas.png()


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    tick: float

    @classmethod
    def over(cls, low: float, high: float, about: int) -> _Axis:
        """An axis that begins and ends at a tick: 1, 2 or 5 times a power of ten apart."""
        spread = (high - low) or abs(high) or 1.0
        exact = spread / about
        power = 10.0 ** math.floor(math.log10(exact))
        tick = next(step * power for step in (1, 2, 5, 10) if step * power >= exact * (1 - 1e-9))
        first, last = math.floor(low / tick + 1e-9), math.ceil(high / tick - 1e-9)
        return cls(first * tick, (last if last > first else first + 1) * tick, tick)

    @property
    def ticks(self) -> list[float]:
        return [self.low + index * self.tick for index in range(round((self.high - self.low) / self.tick) + 1)]

    def share(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)

    def label(self, value: float) -> str:
        if abs(value) >= 1e6 or (self.tick < 1e-4 and value):
            return f"{value:.0e}"
        return f"{value:.{max(0, -math.floor(math.log10(self.tick)))}f}"


def _draw(canvas: Canvas, points: Sequence[tuple[float, float]], color: Color, dots: bool) -> None:
    for start, end in itertools.pairwise(points):
        canvas.line(start, end, color, 2.0)
    if dots:
        for point in points:
            canvas.line(point, point, color, 6.0)


def _legend(canvas: Canvas, right: int, entries: Sequence[tuple[str, Color, bool]]) -> None:
    x = right
    for name, color, shown in reversed(entries):
        if shown:
            x -= text_width(name)
            canvas.text(x, 12, name, _INK)
            canvas.line((x - 32, 19), (x - 10, 19), color, 3.0)
            x -= 56


def _thinned(points: Points) -> Points:
    """At most `_MOST_POINTS`, each the mean of its neighbours, at the last one's step."""
    size = -(-len(points) // _MOST_POINTS) or 1
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(part[-1][0], sum(loss for _, loss in part) / len(part)) for part in parts]
