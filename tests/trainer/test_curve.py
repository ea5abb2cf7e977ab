from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_models import AddedBase
from weft_registry import artifact as artifacts
from weft_trainer.config.run import TrainConfig
from weft_trainer.output.curve import loss_curve
from weft_trainer.output.raster import Canvas
from weft_trainer.training.history import History

BLUE, ORANGE = (31, 119, 180), (214, 90, 20)


def decoded(data: bytes) -> np.ndarray:
    """(height, width, 3) of a PNG with 8-bit RGB and unfiltered rows, every checksum checked."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, body, size = 8, b"", (0, 0)
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        name, part = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length)[0] == zlib.crc32(name + part)
        if name == b"IHDR":
            assert struct.unpack(">IIBBBBB", part)[2:] == (8, 2, 0, 0, 0)
            size = struct.unpack(">II", part[:8])
        body += part if name == b"IDAT" else b""
        at += 12 + length
    rows = np.frombuffer(zlib.decompress(body), np.uint8).reshape(size[1], 1 + 3 * size[0])
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(size[1], size[0], 3)


def of_color(pixels: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """(row, column) of every pixel of that colour, below the legend."""
    return np.argwhere((pixels == color).all(-1)[40:])


def test_a_falling_loss_falls_in_the_picture() -> None:
    pixels = decoded(loss_curve(History([(step, 3.0 - 0.02 * step) for step in range(1, 101)], [])))  # type: ignore[arg-type]
    found = of_color(pixels, BLUE)
    left, right = found[found[:, 1].argmin()], found[found[:, 1].argmax()]
    assert right[0] - left[0] > 150
    assert right[1] - left[1] > 500
    assert not len(of_color(pixels, ORANGE))


def test_points_lie_where_their_values_say() -> None:
    held_out = [(0, 0.0), (50, 1.0), (100, 0.5)]
    found = of_color(decoded(loss_curve(History([], held_out))), ORANGE)  # type: ignore[arg-type]
    top, bottom = found[:, 0].min(), found[:, 0].max()
    left, right = found[:, 1].min(), found[:, 1].max()
    peak = found[found[:, 0] == top][:, 1].mean()
    assert peak == pytest.approx((left + right) / 2, abs=3)
    end = found[found[:, 1] == right][:, 0].mean()
    assert end == pytest.approx((top + bottom) / 2, abs=3)


@pytest.mark.parametrize(
    "history",
    [
        History([(1, 2.0)], []),
        History([(1, 2.0), (2, 2.0)], [(2, 2.0)]),
        History([(step, 1e-7 * step) for step in range(1, 9)], [(8, 1e-6)]),
        History([(step, 1e9 / step) for step in range(1, 5000)], [(4999, 0.0)]),
        History([(3, -1.5), (7, -1.75)], []),
        History([(1, 0.0)], []),
    ],
)
def test_any_history_has_a_picture_and_always_the_same(history: History) -> None:
    first, second = loss_curve(history), loss_curve(history)
    assert first is not None
    assert first == second
    assert decoded(first).shape == (360, 720, 3)
    assert len(first) < 40_000


def test_without_a_point_there_is_no_picture() -> None:
    assert loss_curve(History([], [])) is None


def test_a_line_is_as_wide_as_it_was_told_to_be() -> None:
    canvas = Canvas(40, 40)
    canvas.line((5, 20), (35, 20), (0, 0, 0), width=4)
    ink = 1 - decoded(canvas.png())[:, 20, 0] / 255
    assert ink.sum() == pytest.approx(4, abs=0.05)


def test_the_artifact_has_the_curve_and_the_card_shows_it(
    deep_base: AddedBase, make_config: Callable[..., TrainConfig], run: Callable[..., Path]
) -> None:
    config = make_config(deep_base, "lora", {"r": 2}, eval_every=3, log_every=4)
    directory = run(config, deep_base)
    entry = next(file for file in artifacts.read(directory).files if file.path == "loss.png")
    assert entry.media_type == "image/png"
    pixels = decoded((directory / "loss.png").read_bytes())
    assert len(of_color(pixels, BLUE))
    assert len(of_color(pixels, ORANGE))
    card = (directory / artifacts.CARD).read_text()
    assert "![The loss over the steps of training](loss.png)" in card
    assert "| steps | 6 of 8 examples |" in card
    assert f"| learning rate | {config.training.learning_rate:g}, linear, warm-up 0.05 |" in card
    assert "weft generate NAMESPACE/artifact:v1" in card
