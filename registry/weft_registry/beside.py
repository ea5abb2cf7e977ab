"""Hashing beside other work: chunks are hashed in a thread of its own while they are written or looked at.

Hashing a gigabyte takes most of a second, and lets go of Python's lock meanwhile.
"""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol, Self

_WORTH_A_THREAD = 1 << 16
"""Handing over fewer bytes takes longer than hashing them."""
_AT_MOST_BEHIND = 4
"""Chunks that are held: enough that neither side waits for the other's slower moments."""


class Fed(Protocol):
    """What is given a file piece by piece."""

    def update(self, chunk: bytes, /) -> None:
        """The next bytes."""
        ...


class Beside:
    """Feeds `fed` chunks in order, a few of them behind. Owns a thread until it is left."""

    def __init__(self, fed: Fed) -> None:
        self.fed = fed
        self._behind: deque[Future[None]] = deque()
        self._thread = ThreadPoolExecutor(1, "weft-beside")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown()

    def update(self, chunk: bytes) -> None:
        """The next bytes, which must not change afterwards. Raises what a chunk before them raised."""
        if len(chunk) < _WORTH_A_THREAD:
            self.catch_up()
            self.fed.update(chunk)
            return
        if len(self._behind) == _AT_MOST_BEHIND:
            self._behind.popleft().result()
        self._behind.append(self._thread.submit(self.fed.update, chunk))

    def catch_up(self) -> None:
        """Waits until nothing is behind. Raises what a chunk raised."""
        while self._behind:
            self._behind.popleft().result()


class HashBeside(Beside):
    """A SHA-256 over chunks in order, a few of them behind."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        super().__init__(self._sha256)

    def digest(self) -> str:
        """ "sha256:<hex>" of all bytes so far."""
        self.catch_up()
        return "sha256:" + self._sha256.hexdigest()

    def start_over(self) -> None:
        """What comes from here on has a digest of its own."""
        self.catch_up()
        self.fed = self._sha256 = hashlib.sha256()
