"""Where a registry keeps its catalog and its blobs: files under WEFT_HOME, unless it is told otherwise."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from weft_registry.blobs.local import LocalBlobStore
from weft_registry.blobs.store import BlobLimits, BlobStore
from weft_registry.catalog.database import Catalog
from weft_registry.errors import InvalidInputError, UnsupportedError
from weft_registry.home import DATABASE_VARIABLE as DATABASE_VARIABLE
from weft_registry.passwords import masked

BLOBS_VARIABLE = "WEFT_REGISTRY_BLOBS"


@dataclass(frozen=True)
class Storage:
    """The two back ends of a registry."""

    database: str | None = field(default=None, repr=False)
    """A URL, `postgresql://user@host/name` or `sqlite:////path/catalog.db`; None is catalog.db in the registry's
    directory."""
    blobs: str | None = None
    """A URL, `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix` or `file:///path`; None is the
    registry's directory."""

    @classmethod
    def from_environment(cls, database: str | None = None, blobs: str | None = None) -> Storage:
        """What is given, and for what is not, what WEFT_REGISTRY_DATABASE and WEFT_REGISTRY_BLOBS say."""
        return cls(
            database or os.environ.get(DATABASE_VARIABLE) or None, blobs or os.environ.get(BLOBS_VARIABLE) or None
        )

    def open_catalog(self, directory: Path) -> Catalog:
        """The catalog. Raises as `Catalog`."""
        return Catalog(self.database or directory / "catalog.db")

    def open_blobs(self, directory: Path, limits: BlobLimits | None) -> BlobStore:
        """The blobs; what a bucket receives is staged in `directory`. Asks nothing of a bucket yet.

        Raises `InvalidInputError` for a URL that is none, `UnsupportedError` for a bucket if what it needs is not
        installed, `PreconditionError` for credentials that cannot be used.
        """
        if self.blobs is None:
            return LocalBlobStore(directory, limits)
        if self.blobs.startswith("file:"):
            return LocalBlobStore(_directory(self.blobs), limits)
        try:
            from weft_registry.blobs.bucket import Bucket
            from weft_registry.blobs.object import ObjectBlobStore
        except ModuleNotFoundError as error:
            if error.name != "obstore":
                raise
            raise UnsupportedError(
                "blobs in a bucket need a library that is not installed: pip install 'weft[registry]'",
                reason="NOT_INSTALLED",
            ) from None
        return ObjectBlobStore(Bucket.at(self.blobs), directory, limits)


def _directory(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/") or parts.query or parts.fragment:
        raise InvalidInputError(f"blobs: {masked(url)} is no directory: say file:///DIRECTORY")
    return Path(unquote(parts.path))
