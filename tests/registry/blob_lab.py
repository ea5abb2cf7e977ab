"""A blob store of each kind, and the means to look behind it: what the tests of every store share."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.store import LocalStore

from weft_registry import digest as digests
from weft_registry.blobs.bucket import Bucket, Patience
from weft_registry.blobs.local import LocalBlobStore
from weft_registry.blobs.object import ObjectBlobStore
from weft_registry.blobs.store import BlobLimits, BlobStore
from weft_registry.home import Home
from weft_registry.storage import BLOBS_VARIABLE

if TYPE_CHECKING:
    from obstore.store import ObjectStore

DATA = os.urandom(3 * (1 << 20) + 17)
DIGEST = digests.of_bytes(DATA)


class BlobLab(ABC):
    """One place for blobs. `root` is the local directory that every store has."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = self.open()

    @abstractmethod
    def open(self, limits: BlobLimits | None = None) -> BlobStore:
        """A store over the same place, as another process would have it."""

    @abstractmethod
    def held(self) -> dict[str, bytes]:
        """The blobs that are there, asked without the store."""

    @abstractmethod
    def replace(self, digest: str, data: bytes) -> None:
        """Damages a blob behind the store's back."""

    @abstractmethod
    def add_beside(self, name: str) -> None:
        """Puts something that is no blob beside the blobs."""

    def staged(self) -> list[Path]:
        """What lies in the staging directories."""
        return [path for name in ("uploads", "tmp") for path in (self.root / name).iterdir()]


class DirectoryLab(BlobLab):
    """Blobs in a directory."""

    def open(self, limits: BlobLimits | None = None) -> LocalBlobStore:
        return LocalBlobStore(self.root, limits)

    def held(self) -> dict[str, bytes]:
        blobs = self.root / "blobs" / "sha256"
        return {f"sha256:{path.name}": path.read_bytes() for path in blobs.rglob("*") if path.is_file()}

    def replace(self, digest: str, data: bytes) -> None:
        path = blob_path(self.root, digest)
        path.chmod(0o644)
        path.write_bytes(data)

    def add_beside(self, name: str) -> None:
        path = self.root / "blobs" / "sha256" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"something else")


class BucketLab(BlobLab):
    """Blobs in a bucket: the real one at `url`, or one that a library plays in a directory."""

    def __init__(self, root: Path, url: str | None = None) -> None:
        bucket = root.with_name("bucket")
        self.objects: ObjectStore = Bucket.at(url).store if url else LocalStore(bucket, mkdir=True)
        super().__init__(root)

    def open(self, limits: BlobLimits | None = None) -> ObjectBlobStore:
        return ObjectBlobStore(Bucket(self.objects, "s3://bucket/prefix", Patience(failing_s=2.0)), self.root, limits)

    def held(self) -> dict[str, bytes]:
        paths = [meta["path"] for page in obstore.list(self.objects) for meta in page]
        return {"sha256:" + path.rpartition("/")[2]: bytes(obstore.get(self.objects, path).bytes()) for path in paths}

    def replace(self, digest: str, data: bytes) -> None:
        obstore.put(self.objects, key(digest), data)

    def add_beside(self, name: str) -> None:
        obstore.put(self.objects, f"blobs/sha256/{name}", b"something else")


def lab_of(home: Home) -> BlobLab:
    """The blobs of a registry, wherever the environment says that they are."""
    url = os.environ.get(BLOBS_VARIABLE)
    return BucketLab(home.registry, url) if url else DirectoryLab(home.registry)


def key(digest: str) -> str:
    return f"blobs/sha256/{digest[7:9]}/{digest[7:]}"


def blob_path(root: Path, digest: str = DIGEST) -> Path:
    return root / key(digest)


def is_recent(moment: datetime, seconds: float = 120.0) -> bool:
    return abs((datetime.now(moment.tzinfo) - moment).total_seconds()) < seconds
