"""The part of the embedded registry that keeps it well: collection, checks, backups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from weft_registry.admin_api import CheckProgress, GarbageReport
from weft_registry.blobs.store import BlobStore
from weft_registry.catalog.database import Catalog
from weft_registry.errors import InvalidInputError
from weft_registry.principal import EVERY, Principal, Scope

if TYPE_CHECKING:
    from weft_registry.upkeep.backup import BackupReport, Watch
    from weft_registry.upkeep.restore import RestoreReport

GRACE_S = 3600.0
"""How long a blob that nothing needs stays after it came, unless one says otherwise."""


class Upkeep:
    """What `weft_registry.embedded.EmbeddedRegistry` does for itself as a whole. Owns nothing.

    What does the work is imported when it is asked for: most processes that open a registry never do.
    """

    _blobs: BlobStore
    _catalog: Catalog
    _principal: Principal
    _upload_idle_s: float

    def collect_garbage(self, *, dry_run: bool = False, grace_s: float = GRACE_S) -> GarbageReport:
        """Removes the bytes that no version, branch or lease needs and that came more than `grace_s` ago; with
        `dry_run`, only says which it would. Safe beside publishes.

        Raises `PreconditionError` while a backup or a restore is under way.
        """
        from weft_registry.upkeep.collector import Collector

        self._principal.check(Scope.ADMIN, EVERY)
        if not 0 <= grace_s < 1e9:
            raise InvalidInputError(f"grace_s: {grace_s}: expected seconds from 0 on")
        collector = Collector(self._catalog, self._blobs, self._principal.name)
        return collector.collect(dry_run=dry_run, grace_s=grace_s, upload_idle_s=self._upload_idle_s)

    def check(self) -> Iterator[CheckProgress]:
        """Proves every version complete and every blob's hash right; the last progress has `done` and the problems."""
        from weft_registry.upkeep.check import Checker

        self._principal.check(Scope.ADMIN, EVERY)
        return Checker(self._catalog, self._blobs).check()

    def backup(self, to: Path, watch: Watch | None = None) -> BackupReport:
        """Writes a backup into a directory or a new ".tar" file. See `weft_registry.upkeep.backup.backup`."""
        from weft_registry.upkeep.backup import backup

        self._principal.check(Scope.ADMIN, EVERY)
        return backup(self._catalog, self._blobs, to, watch)

    def restore(self, source: Path, *, replace: bool = False, watch: Watch | None = None) -> RestoreReport:
        """Fills this registry from a backup. See `weft_registry.upkeep.restore.restore`."""
        from weft_registry.upkeep.restore import restore

        self._principal.check(Scope.ADMIN, EVERY)
        return restore(self._catalog, self._blobs, source, self._principal.name, replace=replace, watch=watch)
