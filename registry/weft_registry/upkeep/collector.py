"""Removes the bytes that nothing needs: mark and sweep, beside publishes, safe to be killed at any moment.

Why nothing that is referenced is ever removed: blobs are deleted inside a write transaction of the catalog, beside
which nobody else writes, and which has asked the catalog about these very blobs. A publish that committed before it
is seen, and its blobs stay; a publish that comes after it asks the store for its blobs inside its own write
transaction, finds them missing, and is refused as a whole. The grace period and leases spare publishes that refusal;
nothing depends on them. Knows nothing of kinds and manifests.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice

import sqlalchemy as sa

from weft_registry.admin_api import GarbageReport
from weft_registry.blobs.store import BlobStore, StoredBlob
from weft_registry.catalog import audit, held, leases, records
from weft_registry.catalog import tables as t
from weft_registry.catalog.database import Catalog
from weft_registry.upkeep import holds, roots

_SWEPT_AT_ONCE = 64
"""Blobs to a write transaction: others wait for it."""
_LONGEST_PAUSE_S = 0.5


class Collector:
    """Owns neither catalog nor blobs."""

    def __init__(self, catalog: Catalog, blobs: BlobStore, actor: str) -> None:
        """`actor` is who collects, for the audit log."""
        self._catalog = catalog
        self._blobs = blobs
        self._actor = actor

    def collect(self, *, dry_run: bool, grace_s: float, upload_idle_s: float) -> GarbageReport:
        """Removes, or with `dry_run` only counts, the blobs without need that are older than `grace_s`, the uploads
        without a new byte for `upload_idle_s`, and leases that have ended.

        Raises `PreconditionError` while a backup or a restore needs blobs to stay; what was removed until then is
        written down in the audit log.
        """
        dropped = self._idle_uploads(upload_idle_s) if dry_run else self._tidy(upload_idle_s)
        young = datetime.now(UTC) - timedelta(seconds=grace_s)
        seen, removed_blobs, removed_bytes = 0, 0, 0
        garbage: list[StoredBlob] = []
        for some in _batches(self._blobs.list_blobs(), roots.AT_ONCE):
            seen += len(some)
            old = [blob for blob in some if blob.stored_at <= young]
            with self._catalog.read() as connection:
                needed = roots.needed(connection, [blob.digest for blob in old])
            garbage += [blob for blob in old if blob.digest not in needed]
            while garbage and (len(garbage) >= _SWEPT_AT_ONCE or len(some) < roots.AT_ONCE):
                now, garbage = garbage[:_SWEPT_AT_ONCE], garbage[_SWEPT_AT_ONCE:]
                swept = now if dry_run else self._sweep(now)
                removed_blobs += len(swept)
                removed_bytes += sum(blob.size_bytes for blob in swept)
        return GarbageReport(removed_blobs, removed_bytes, seen - removed_blobs, dropped)

    def _sweep(self, garbage: Sequence[StoredBlob]) -> Sequence[StoredBlob]:
        """Deletes those that are still garbage now that nobody else writes; returns them."""
        began = time.monotonic()
        with self._catalog.write() as connection:
            holds.refuse_if_held(connection)
            needed = roots.needed(connection, [blob.digest for blob in garbage])
            swept = [blob for blob in garbage if blob.digest not in needed]
            if swept:
                size = sum(blob.size_bytes for blob in swept)
                audit.record(connection, self._actor, "collect", "", "", {"blobs": len(swept), "bytes": size})
                held.forget(connection, [blob.digest for blob in swept])
                self._blobs.delete_blobs([blob.digest for blob in swept])
        # Writers who wait are let in: SQLite's do not queue, they look again now and then.
        time.sleep(min(time.monotonic() - began, _LONGEST_PAUSE_S))
        return swept

    def _tidy(self, upload_idle_s: float) -> int:
        with self._catalog.write() as connection:
            holds.refuse_if_held(connection)
            leases.expire(connection)
            connection.execute(t.uploads.delete().where(_is_idle(upload_idle_s)))
        return self._blobs.drop_idle_uploads(upload_idle_s)

    def _idle_uploads(self, upload_idle_s: float) -> int:
        with self._catalog.read() as connection:
            statement = sa.select(sa.func.count()).select_from(t.uploads).where(_is_idle(upload_idle_s))
            return connection.execute(statement).scalar_one()


def _is_idle(upload_idle_s: float) -> sa.ColumnElement[bool]:
    return t.uploads.c.touched_at_us <= records.now_us() - round(1e6 * upload_idle_s)


def _batches(blobs: Iterator[StoredBlob], size: int) -> Iterator[list[StoredBlob]]:
    """Lists of `size`; the last one is shorter, and may be empty."""
    while True:
        some = list(islice(blobs, size))
        yield some
        if len(some) < size:
            return
