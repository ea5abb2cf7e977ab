"""Where a registry keeps its catalog and its blobs: files under WEFT_HOME, unless it is told otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from weft_registry.blobs.local import LocalBlobStore
from weft_registry.blobs.store import BlobLimits, BlobStore
from weft_registry.catalog.database import Catalog


@dataclass(frozen=True)
class Storage:
    """The two back ends of a registry."""

    database: str | None = None
    """A URL, `postgresql://user@host/name` or `sqlite:////path/catalog.db`; None is catalog.db in the registry's
    directory."""
    blobs: str | None = None
    """A URL, `s3://bucket/prefix`, `gs://...`, `az://...` or `file:///path`; None is the registry's directory."""

    def open_catalog(self, directory: Path) -> Catalog:
        """The catalog. Raises as `Catalog`."""
        return Catalog(self.database or directory / "catalog.db")

    def open_blobs(self, directory: Path, limits: BlobLimits | None) -> BlobStore:
        """The blobs. Raises `InvalidInputError` for a URL that is none."""
        return LocalBlobStore(directory, limits)
