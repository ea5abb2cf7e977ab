"""Keeps what a mirror holds within a bound: what was read least recently goes first, and comes again when it is wanted.

Where the order lives. The catalog has a row for each blob that is held (`weft_registry.catalog.held`): it outlives the
process, is shared by all processes of a mirror, and does not care where the blobs are. Reads are noted in memory and
written down together, once a minute and before anything goes, so that no read waits for the catalog.

Who is spared. What is open in this process never goes: from a local disk its reader would read on, but from a bucket a
reader goes on by further requests. What is open elsewhere was noted as read a moment ago, so it is the last to go; if
nothing else is left it goes all the same, since otherwise the newest, which everybody asks for next, would be what is
not held when the upstream goes away, and whoever was reading may read again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from sqlalchemy import Connection

from weft_registry.blobs.store import BlobStore
from weft_registry.catalog import held, records
from weft_registry.catalog.database import Catalog
from weft_registry.catalog.held import Held
from weft_registry.errors import PreconditionError, WeftError
from weft_registry.mirror.readers import Readers
from weft_registry.mirror.stock import Stock
from weft_registry.upkeep import holds

NOTE_S = 60.0
"""Reads are written down so often."""
COUNT_S = 3600.0
"""What is held is counted so often: other programs may put blobs there and take them away."""
_GONE_AT_ONCE = 256
"""Blobs to a write transaction where there is no hurry: others wait for it."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evicted:
    """What went since the process began."""

    blobs: int = 0
    size_bytes: int = 0


class Room:
    """Owns a thread, and what is known of who reads. Thread-safe."""

    def __init__(self, bound_bytes: int, catalog: Catalog, store: BlobStore, note_s: float = NOTE_S) -> None:
        """`store` is what holds them. The thread begins by counting, and makes room where more is held than may be."""
        self.evicted = Evicted()
        self._bound, self._catalog, self._store, self._note_s = bound_bytes, catalog, store, note_s
        self._readers, self._stock = Readers(), Stock(catalog, store)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="weft-room", daemon=True)
        self._thread.start()

    def use(self, digest: str, *, is_read: bool = True) -> Callable[[], None]:
        """See `Readers.use`."""
        return self._readers.use(digest, is_read=is_read)

    def keep(self, digest: str, size_bytes: int, put: Callable[[], None]) -> bool:
        """Has `put` store a blob if there is room, or room can be made; whether it did.

        Raises what `put` raises, and as the catalog and the store do.
        """
        if size_bytes > self._bound:
            self._not_kept(digest, size_bytes, "this is more")
            return False
        self._stock.count(at_most_every_s=None)
        done = self._readers.use(digest)
        try:
            if not self._admit(Held(digest, size_bytes, records.now_us())):
                return False
            try:
                put()
            except BaseException:
                with suppress(WeftError), self._catalog.write() as connection:
                    held.forget(connection, [digest])
                raise
            return True
        finally:
            done()

    def fit(self) -> None:
        """Counts what is held if that is due, and makes room where it is more than may be."""
        self._stock.count(at_most_every_s=COUNT_S)
        while self._excess() > 0:
            try:
                with self._writing() as connection, self._claiming(connection, _GONE_AT_ONCE) as (_, going):
                    self._evict(connection, going)
            except PreconditionError as error:
                if error.reason == "COLLECTION_HELD":
                    return
                raise
            if not going:
                return

    def flush(self) -> None:
        """Writes down what was read. Raises as the catalog does; then it is for the next time."""
        if self._readers.has_reads:
            with self._writing():
                pass

    def close(self) -> None:
        """Ends the thread, and writes down what was read."""
        self._closed.set()
        self._thread.join(10)
        with suppress(WeftError):
            self.flush()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self.flush()
                self.fit()
            except WeftError as error:
                _log.warning("what this mirror holds is not looked after now: %s", error.message)
            except Exception:  # noqa: BLE001
                # A thread's own end would be noticed by nobody, and reads would never be written down again.
                _log.exception("looking after what this mirror holds failed unexpectedly")
            self._closed.wait(self._note_s)

    def _admit(self, blob: Held) -> bool:
        """Writes down a blob that is about to be stored, and makes room for it, in one transaction: two that come at
        once do not both take the same room. Where there is too little, nothing goes, and nothing comes."""
        try:
            with self._writing() as connection:
                held.enter(connection, [blob])
                with self._claiming(connection, None) as (excess, going):
                    if sum(one.size_bytes for one in going) < excess:
                        raise _NoRoomError
                    self._evict(connection, going)
        except _NoRoomError:
            self._not_kept(blob.digest, blob.size_bytes, "what is held is being read, or cannot be brought again")
            return False
        except PreconditionError as error:
            if error.reason != "COLLECTION_HELD":
                raise
            # A backup reads blobs long after it has listed them.
            self._not_kept(blob.digest, blob.size_bytes, "a backup needs what is held")
            return False
        return True

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A write transaction in which all that was read is written down."""
        reads = self._readers.take_reads()
        try:
            with self._catalog.write() as connection:
                held.note(connection, reads)
                yield connection
        except BaseException:
            self._readers.put_back(reads)
            raise

    @contextmanager
    def _claiming(self, connection: Connection, most: int | None) -> Iterator[tuple[int, list[Held]]]:
        """By how many bytes too much is held, and what goes for it, at most `most`: nobody begins to read that before
        the context ends. It may be too little."""
        excess = held.total_bytes(connection) - self._bound
        going: list[Held] = []
        try:
            left, last = excess, None
            while left > 0 and len(going) != most and (some := held.least_recently_read(connection, last)):
                last = some[-1]
                for blob in some:
                    if left > 0 and len(going) != most and self._readers.claim(blob.digest):
                        going.append(blob)
                        left -= blob.size_bytes
            yield excess, going
        finally:
            self._readers.release(blob.digest for blob in going)

    def _evict(self, connection: Connection, blobs: Sequence[Held]) -> None:
        """Takes blobs out of the catalog and the store. Inside of a write transaction: another process that brings one
        of them again stores it after this, and does not lose it to this."""
        if not blobs:
            return
        holds.refuse_if_held(connection)
        digests = [blob.digest for blob in blobs]
        held.forget(connection, digests)
        self._stock.gone(digests)
        self._store.delete_blobs(digests)
        size = sum(blob.size_bytes for blob in blobs)
        self.evicted = Evicted(self.evicted.blobs + len(blobs), self.evicted.size_bytes + size)
        _log.warning(
            "evicted %d blobs of %d bytes, none of them read since %s, to hold at most %d bytes; since the start: %d "
            "blobs of %d bytes",
            len(blobs),
            size,
            f"{records.from_us(max(blob.read_at_us for blob in blobs)):%Y-%m-%dT%H:%M:%SZ}",
            self._bound,
            self.evicted.blobs,
            self.evicted.size_bytes,
        )

    def _excess(self) -> int:
        with self._catalog.read() as connection:
            return held.total_bytes(connection) - self._bound

    def _not_kept(self, digest: str, size_bytes: int, why: str) -> None:
        words = "blob %s of %d bytes is given on and not kept: at most %d bytes may be held, and %s"
        _log.warning(words, digest, size_bytes, self._bound, why)


class _NoRoomError(Exception):
    """Undoes a transaction."""
