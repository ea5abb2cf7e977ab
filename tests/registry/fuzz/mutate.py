"""Mutations of valid inputs, for where no coverage-guided fuzzer is installed. The same seed makes the same inputs."""

from __future__ import annotations

import random
from collections.abc import Sequence

MAX_BYTES = 4096
# What parsers trip over, more often than over single bytes.
PIECES = (
    *(
        b'"',
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b",",
        b"\\",
        b"/",
        b"..",
        b"%2e",
        b"%00",
        b"%",
        b"\0",
        b"\n",
        b"\r\n",
        b"@",
        b"+",
        b"*",
    ),
    *(b"-1", b"0", b"1e999", b"NaN", b"Infinity", b"null", b"true", b"9" * 40, b"18446744073709551616", b"-0", b"0.5"),
    *(
        b"\xff",
        b"\xc0\xaf",
        b"\xed\xa0\x80",
        b"\xe2\x80\xae",
        b"\xef\xbb\xbf",
        b"\\ud800",
        b"\\u0000",
        "é".encode(),
        "٣".encode(),
    ),
    *(
        b"sha256:",
        b"latest",
        b"__metadata__",
        b"dtype",
        b"shape",
        b"data_offsets",
        b"bytes=",
        b"---\n",
        b"&a ",
        b"*a",
        b"!!x ",
    ),
    *(b"[" * 200, b"(" * 20, b"(a|aa)" * 8, b".*" * 4, b" " * 64, b"\x7f\xff\xff\xff\xff\xff\xff\xff", b"\xff" * 8),
)


def mutated(generator: random.Random, seeds: Sequence[bytes]) -> bytes:
    """One input: a seed after one to eight changes, rarely bytes of no seed at all."""
    if generator.random() < 0.02:
        return generator.randbytes(generator.randrange(200))
    data = bytearray(generator.choice(seeds))
    for _ in range(generator.randrange(1, 9)):
        at = generator.randrange(len(data) + 1)
        to = min(len(data), at + generator.choice((1, 1, 2, 4, 16, 64)))
        change = generator.randrange(7)
        if change == 0:
            data[at:at] = generator.choice(PIECES)
        elif change == 1:
            data[at:to] = generator.choice(PIECES)
        elif change == 2:
            del data[at:to]
        elif change == 3 and at < len(data):
            data[at] ^= 1 << generator.randrange(8)
        elif change == 4:
            data[at:at] = data[at:to]
        elif change == 5:
            other = generator.choice(seeds)
            begin = generator.randrange(len(other) + 1)
            data[at:to] = other[begin : begin + 32]
        elif change == 6 and at < len(data):
            data[at] = generator.randrange(256)
    return bytes(data[:MAX_BYTES])
