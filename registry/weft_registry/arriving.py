"""Weights looked at as they arrive: each tensor hashed, each number seen, so that a publish need not read them again.

A registry on this machine hashes an upload while it writes it. What a publish asks of the bytes besides, the digest of
each tensor and that all of them are numbers, is found out here in the same pass, and remembered for a while in a few
bytes a file. Nothing is refused here: whatever is odd is left to `weft_registry.validation`, which names it.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from weft_registry import headers
from weft_registry.errors import WeftError
from weft_registry.headers import DTYPE_BYTES, HeaderEntry

MIN_BYTES = 16 << 20
"""Smaller files are read again in no time, and looked at once."""
MAX_HEADER_BYTES = 1 << 20
MAX_REMEMBERED = 256


class ArrivingWeights:
    """A file that may be safetensors, fed from its first byte to its last in pieces of any size. Not thread-safe."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._head = bytearray()
        self._entries: tuple[HeaderEntry, ...] = ()
        self._at = 0
        """Place in the file of the next byte, once the header is known."""
        self._sha256: Any = hashlib.sha256()
        self._split = b""
        """The first bytes of a number whose others are in the next piece."""
        self._digests: list[str] = []
        self._sound = size_bytes >= MIN_BYTES

    def update(self, chunk: bytes) -> None:
        """The next bytes."""
        if not self._sound:
            return
        data = memoryview(chunk)
        if not self._entries:
            data = self._read_head(data)
        while self._sound and data and len(self._digests) < len(self._entries):
            entry = self._entries[len(self._digests)]
            piece, data = data[: entry.end - self._at], data[entry.end - self._at :]
            self._sha256.update(piece)
            self._sound = self._are_numbers(piece, entry.dtype)
            self._at += len(piece)
            if self._at == entry.end:
                self._digests.append("sha256:" + self._sha256.hexdigest())
                self._sha256 = hashlib.sha256()

    def tensors(self) -> list[str] | None:
        """The digests of the tensors in file order; None unless all have arrived and are numbers throughout."""
        whole = self._entries and len(self._digests) == len(self._entries)
        return self._digests if self._sound and whole else None

    def _read_head(self, data: memoryview) -> memoryview:
        """Takes what belongs to the header, and returns the rest."""
        data = self._fill_head(data, 8)
        if len(self._head) < 8:
            return data
        end = 8 + int.from_bytes(self._head[:8], "little")
        if end > MAX_HEADER_BYTES:
            self._sound = False
            return data
        data = self._fill_head(data, end)
        if len(self._head) == end:
            try:
                self._entries = headers.read_header(io.BytesIO(self._head), self._size_bytes).entries
            except WeftError:
                self._sound = False
            self._at = end
            self._head.clear()
        return data

    def _fill_head(self, data: memoryview, end: int) -> memoryview:
        """Takes what is missing from the first `end` bytes, and returns the rest."""
        missing = max(0, end - len(self._head))
        self._head += data[:missing]
        return data[missing:]

    def _are_numbers(self, piece: memoryview, dtype: str) -> bool:
        width = DTYPE_BYTES[dtype]
        found = 0
        if self._split:
            wanted = width - len(self._split)
            self._split += piece[:wanted]
            piece = piece[wanted:]
            if len(self._split) < width:
                return True
            found = headers.non_finite(self._split, dtype)
        whole = len(piece) - len(piece) % width
        self._split = bytes(piece[whole:])
        return found + headers.non_finite(piece[:whole], dtype) == 0


class SoundWeights:
    """Files of weights that were looked at as they arrived, by digest. Thread-safe."""

    def __init__(self) -> None:
        self._tables: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def remember(self, digest: str, arrived: ArrivingWeights) -> None:
        """What was seen of a file that has turned out to have this digest."""
        tensors = arrived.tensors()
        if tensors is None:
            return
        with self._lock:
            self._tables[digest] = _digest_of(tensors)
            while len(self._tables) > MAX_REMEMBERED:
                self._tables.popitem(last=False)

    def knows(self, digest: str, tensors: Sequence[str]) -> bool:
        """Whether the file with this digest has tensors with these, in this order, all of them numbers."""
        with self._lock:
            return self._tables.get(digest) == _digest_of(tensors)


def _digest_of(tensors: Sequence[str]) -> bytes:
    return hashlib.sha256("".join(tensors).encode()).digest()
