"""A small canvas: smooth lines, dots and a few letters on white, as PNG bytes. The same calls give the same bytes.

Own code because a plotting library weighs more than the rest of the trainer's dependencies but torch, and this draws
one chart.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

Color = tuple[int, int, int]
GLYPH_WIDTH, GLYPH_HEIGHT = 5, 7
# Five columns by seven rows, a row after another from the top; "#" is ink. Only what the charts say.
_GLYPHS = {
    "0": ".###. #...# #..## #.#.# ##..# #...# .###.",
    "1": "..#.. .##.. ..#.. ..#.. ..#.. ..#.. .###.",
    "2": ".###. #...# ....# ...#. ..#.. .#... #####",
    "3": "##### ...#. ..#.. ...#. ....# #...# .###.",
    "4": "...#. ..##. .#.#. #..#. ##### ...#. ...#.",
    "5": "##### #.... ####. ....# ....# #...# .###.",
    "6": "..##. .#... #.... ####. #...# #...# .###.",
    "7": "##### ....# ...#. ..#.. .#... .#... .#...",
    "8": ".###. #...# #...# .###. #...# #...# .###.",
    "9": ".###. #...# #...# .#### ....# ...#. .##..",
    ".": "..... ..... ..... ..... ..... .##.. .##..",
    "-": "..... ..... ..... ##### ..... ..... .....",
    "+": "..... ..#.. ..#.. ##### ..#.. ..#.. .....",
    "a": "..... ..... .###. ....# .#### #...# .####",
    "d": "....# ....# .##.# #..## #...# #...# .####",
    "e": "..... ..... .###. #...# ##### #.... .###.",
    "h": "#.... #.... #.##. ##..# #...# #...# #...#",
    "i": "..#.. ..... .##.. ..#.. ..#.. ..#.. .###.",
    "l": ".##.. ..#.. ..#.. ..#.. ..#.. ..#.. .###.",
    "n": "..... ..... #.##. ##..# #...# #...# #...#",
    "o": "..... ..... .###. #...# #...# #...# .###.",
    "p": "..... ..... ####. #...# ####. #.... #....",
    "r": "..... ..... #.##. ##..# #.... #.... #....",
    "s": "..... ..... .###. #.... .###. ....# ####.",
    "t": ".#... .#... ###.. .#... .#... .#..# ..##.",
    "u": "..... ..... #...# #...# #...# #..## .##.#",
    " ": "..... ..... ..... ..... ..... ..... .....",
}


class Canvas:
    """A picture in the making, in pixels from the top left. Owns its array: (height, width, 3), 0 to 1."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._pixels = np.ones((height, width, 3))

    def line(self, start: tuple[float, float], end: tuple[float, float], color: Color, width: float = 1.0) -> None:
        """A straight line with smooth edges and round ends. With `start` == `end`: a dot of that diameter."""
        (x0, y0), (x1, y1) = start, end
        reach = width / 2 + 1
        left, right = max(0, int(min(x0, x1) - reach)), min(self.width, int(max(x0, x1) + reach) + 2)
        top, bottom = max(0, int(min(y0, y1) - reach)), min(self.height, int(max(y0, y1) + reach) + 2)
        if left >= right or top >= bottom:
            return
        y, x = np.mgrid[top:bottom, left:right].astype(float)
        dx, dy = x1 - x0, y1 - y0
        along = np.clip(((x - x0) * dx + (y - y0) * dy) / max(dx * dx + dy * dy, 1e-12), 0, 1)
        distance = np.hypot(x - (x0 + along * dx), y - (y0 + along * dy))
        self._blend(slice(top, bottom), slice(left, right), np.clip(width / 2 + 0.5 - distance, 0, 1), color)

    def text(self, x: int, y: int, text: str, color: Color, size: int = 2) -> None:
        """Letters of `size` pixels a dot; (x, y) is the top left corner."""
        for index, letter in enumerate(text):
            rows = _GLYPHS[letter].split()
            ink = np.array([[dot == "#" for dot in row] for row in rows]).repeat(size, 0).repeat(size, 1)
            left = x + index * (GLYPH_WIDTH + 1) * size
            self._blend(slice(y, y + ink.shape[0]), slice(left, left + ink.shape[1]), ink.astype(float), color)

    def png(self) -> bytes:
        """The picture: 8 bits a channel, no ancillary chunks (so no time in it)."""
        pixels = np.round(self._pixels * 255).astype(np.uint8)
        # Each row begins with its filter: none.
        rows = np.concatenate([np.zeros((self.height, 1), np.uint8), pixels.reshape(self.height, -1)], axis=1)
        header = struct.pack(">IIBBBBB", self.width, self.height, 8, 2, 0, 0, 0)
        chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)

    def _blend(self, rows: slice, columns: slice, ink: NDArray[np.float64], color: Color) -> None:
        part = self._pixels[rows, columns]
        ink = ink[: part.shape[0], : part.shape[1], None]
        part += ink * (np.array(color) / 255 - part)


def text_width(text: str, size: int = 2) -> int:
    """How wide `Canvas.text` draws it."""
    return (len(text) * (GLYPH_WIDTH + 1) - 1) * size


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
