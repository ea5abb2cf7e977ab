"""Hashing beside other work: a digest is computed in a thread of its own while the same bytes are written or looked at.

Hashing a gigabyte takes most of a second, and lets go of Python's lock meanwhile.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

_WORTH_A_THREAD = 1 << 16
"""Handing over fewer bytes takes longer than hashing them."""


class HashBeside:
    """A SHA-256 over chunks in order, at most one of them behind. Owns a thread until it is left."""

    def __init__(self) -> None:
        self._sha256, self._behind = hashlib.sha256(), Future[None]()
        self._behind.set_result(None)
        self._thread = ThreadPoolExecutor(1, "weft-hash")

    def __enter__(self) -> HashBeside:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown()

    def update(self, chunk: bytes) -> None:
        """The next bytes, which must not change afterwards."""
        self._behind.result()
        if len(chunk) < _WORTH_A_THREAD:
            self._sha256.update(chunk)
        else:
            self._behind = self._thread.submit(self._sha256.update, chunk)

    def digest(self) -> str:
        """ "sha256:<hex>" of all bytes so far."""
        self._behind.result()
        return "sha256:" + self._sha256.hexdigest()

    def start_over(self) -> None:
        """What comes from here on has a digest of its own."""
        self._behind.result()
        self._sha256 = hashlib.sha256()
