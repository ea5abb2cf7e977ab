"""Has the catalog of a mirror say what its store holds: what was there before anybody wrote that down, what other
programs put there or took away, and what a killed process left half done."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from itertools import islice

from weft_registry.blobs.store import BlobStore
from weft_registry.catalog import held, records
from weft_registry.catalog.database import Catalog
from weft_registry.catalog.held import Held

_STORING_US = 3600 * 1_000_000
"""A blob that was written down so lately may not be in the store yet."""


class Stock:
    """Owns what is known of the last count. Thread-safe."""

    def __init__(self, catalog: Catalog, store: BlobStore) -> None:
        self._catalog, self._store = catalog, store
        self._counting = threading.Lock()
        self._counted_s: float | None = None
        self._gone: set[str] = set()

    def gone(self, digests: Iterable[str]) -> None:
        """These blobs are being deleted, in the write transaction of the caller: a count that is under way may have
        listed them before, and must not write them down."""
        self._gone.update(digests)

    def count(self, at_most_every_s: float | None) -> None:
        """Counts if it was not done for so long; with None, if it was never done here.

        What nobody wrote down is taken to have been read when it came. A listing of a million blobs takes some 100 MB
        while it lasts. Raises as the catalog and the store do; what was written down until then is right.
        """
        if at_most_every_s is None and self._counted_s is not None:
            return
        with self._counting:
            since = self._counted_s
            if since is not None and (at_most_every_s is None or time.monotonic() < since + at_most_every_s):
                return
            self._gone.clear()
            began_us, listing, seen = records.now_us(), self._store.list_blobs(), set[bytes]()
            while some := list(islice(listing, held.AT_ONCE)):
                seen.update(_short(blob.digest) for blob in some)
                found = [Held(blob.digest, blob.size_bytes, records.to_us(blob.stored_at)) for blob in some]
                with self._catalog.read() as connection:
                    lacking = held.lacking(connection, found)
                if lacking:
                    with self._catalog.write() as connection:
                        held.enter(connection, [blob for blob in lacking if blob.digest not in self._gone])
            self._forget_all_but(seen, began_us - _STORING_US)
            self._counted_s = time.monotonic()

    def _forget_all_but(self, seen: set[bytes], read_before_us: int) -> None:
        last = ""
        while True:
            with self._catalog.read() as connection:
                some = held.page(connection, last, read_before_us)
            if not some:
                return
            last = some[-1]
            if gone := [digest for digest in some if _short(digest) not in seen]:
                with self._catalog.write() as connection:
                    held.forget(connection, gone)


def _short(digest: str) -> bytes:
    return bytes.fromhex(digest.removeprefix("sha256:"))
