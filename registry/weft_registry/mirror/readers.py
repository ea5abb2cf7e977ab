"""Which blobs are being read in this process, and when each was read last. Knows neither stores nor catalogs."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable

from weft_registry.catalog import records


class Readers:
    """Owns both counts. Thread-safe."""

    def __init__(self) -> None:
        # Reentrant: what ends a read may be the collector of objects, in the middle of anything.
        self._news = threading.Condition(threading.RLock())
        self._open: Counter[str] = Counter()
        self._going: set[str] = set()
        self._read: dict[str, int] = {}

    def use(self, digest: str, *, is_read: bool = True) -> Callable[[], None]:
        """A blob is in use from here on, until what this returns is called. Waits for one that is just going, so that
        whoever asks the store next hears that it is gone. Without `is_read` it does not count as read."""
        with self._news:
            self._news.wait_for(lambda: digest not in self._going)
            self._open[digest] += 1
            if is_read:
                self._read[digest] = records.now_us()
        return lambda: self._end(digest)

    def claim(self, digest: str) -> bool:
        """Whether nobody uses a blob; then nobody begins to, until it is released."""
        with self._news:
            if self._open[digest] or digest in self._going:
                return False
            self._going.add(digest)
            return True

    def release(self, digests: Iterable[str]) -> None:
        """What was claimed is gone, or stays after all."""
        with self._news:
            self._going.difference_update(digests)
            self._news.notify_all()

    @property
    def has_reads(self) -> bool:
        """Whether `take_reads` has anything to give."""
        with self._news:
            return bool(self._read or self._open)

    def take_reads(self) -> dict[str, int]:
        """When each blob was read last that was since this was called last, or is read now, in microseconds."""
        with self._news:
            now = records.now_us()
            found, self._read = self._read, {}
            # A long read counts for as long as it goes on: other processes see nothing else of it.
            return {**found, **{digest: now for digest, count in self._open.items() if count}}

    def put_back(self, reads: dict[str, int]) -> None:
        """They could not be written down: next time."""
        with self._news:
            self._read = {**reads, **self._read}

    def _end(self, digest: str) -> None:
        with self._news:
            self._open[digest] -= 1
            if not self._open[digest]:
                del self._open[digest]
