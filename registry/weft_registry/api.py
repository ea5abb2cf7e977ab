"""What a registry can do, whether it is embedded in this process or reached over gRPC.

`weft_registry.embedded.EmbeddedRegistry` and `weft_registry.remote.RemoteRegistry` both are one. Everything is
synchronous; an asyncio caller runs it in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from weft_registry.manifest import Manifest
from weft_registry.reference import AdapterName

Progress = Callable[[int], None]
"""Called with the number of further bytes done."""


@dataclass(frozen=True)
class Version:
    """One published, immutable version."""

    adapter: AdapterName
    digest: str
    manifest_bytes: bytes
    """Canonical JSON: exactly what `digest` is taken over."""
    tags: tuple[str, ...]
    aliases: tuple[str, ...]
    published_at: datetime
    size_bytes: int
    yanked: bool
    yank_reason: str
    published_by: str = ""
    """The name of the token that published it; empty where nobody had to say."""
    parent_digest: str = ""
    """The version that it was trained on from, by the manifest; empty for none."""

    @property
    def manifest(self) -> Manifest:
        """The manifest, parsed."""
        return _parsed(self.manifest_bytes)


# Resolving, pulling and binding a version each read its manifest, which takes milliseconds and some hundred kilobytes:
# so it is neither parsed every time nor kept with every version.
@lru_cache(maxsize=16)
def _parsed(manifest_bytes: bytes) -> Manifest:
    return Manifest.parse(manifest_bytes)


@dataclass(frozen=True)
class Published:
    """The answer to a publish."""

    version: Version
    existing: bool
    """The same content was already there under this name."""


@dataclass(frozen=True)
class AdapterSummary:
    """One adapter in a listing."""

    adapter: AdapterName
    version_count: int
    latest: Version | None
    """None when every version is yanked."""


@dataclass(frozen=True)
class Alias:
    """Where an alias points now."""

    name: str
    digest: str
    etag: str
    moved_at: datetime
    previous_digest: str
    protected: bool = False
    """Only administrators, and the tokens that the protection names, may move it."""


@dataclass(frozen=True)
class AliasMove:
    """One move of an alias."""

    sequence: int
    """Grows with every move in the registry."""
    adapter: AdapterName
    alias: str
    digest: str
    """Where it points since; empty: it was removed."""
    previous_digest: str
    """Where it pointed before; empty: it was made."""
    etag: str
    moved_at: datetime
    actor: str
    """The name of the token that moved it; "local" for somebody who opened the files."""


@dataclass(frozen=True)
class Signature:
    """A signature of a version's digest, kept beside the version."""

    key_digest: str
    """Digest of the public key in DER."""
    bundle: bytes
    added_at: datetime
    added_by: str


@dataclass(frozen=True)
class Identity:
    """Who the caller is to a registry."""

    name: str
    scopes: frozenset[str]
    namespaces: frozenset[str]
    """`{"*"}` is every namespace."""
    expires_at: datetime | None = None


@dataclass(frozen=True)
class VerifyReport:
    """The outcome of re-hashing a version."""

    digest: str
    checked_files: int
    checked_bytes: int
    problems: tuple[str, ...]


class RegistryApi(Protocol):
    """A registry. Methods raise the errors of `weft_registry.errors`, with the statuses that registry.proto states."""

    def find_missing(self, digests: Sequence[str]) -> list[str]:
        """Which of these blobs are not held."""
        ...

    def upload(self, path: Path, digest: str, size_bytes: int, progress: Progress | None = None) -> None:
        """Sends one file as a blob, resuming an upload of it that was broken off."""
        ...

    def publish(
        self,
        adapter: AdapterName,
        manifest_bytes: bytes,
        *,
        tags: Sequence[str] = (),
        aliases: Sequence[str] = (),
        request_id: str = "",
    ) -> Published:
        """Publishes a version whose blobs were uploaded; "latest" moves to it."""
        ...

    def resolve(self, reference: str) -> Version:
        """The version that a reference names now."""
        ...

    def list_adapters(self, namespace: str = "") -> list[AdapterSummary]:
        """Adapters in name order."""
        ...

    def list_versions(self, adapter: AdapterName, *, include_yanked: bool = False) -> list[Version]:
        """Versions, newest first."""
        ...

    def read_blob(self, digest: str, offset: int = 0, limit: int = 0) -> Iterator[bytes]:
        """A blob's bytes in chunks; `limit` 0 reads to the end."""
        ...

    def set_alias(self, adapter: AdapterName, alias: str, target: str, expected_etag: str = "") -> Alias:
        """Points an alias at a version (a tag, alias or digest of the same adapter)."""
        ...

    def yank(self, reference: str, reason: str = "") -> Version:
        """Hides a version from new resolves and listings."""
        ...

    def verify(self, reference: str) -> VerifyReport:
        """Re-hashes everything of a version."""
        ...

    def close(self) -> None:
        """Releases connections and files."""
        ...
