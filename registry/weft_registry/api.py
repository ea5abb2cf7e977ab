"""What a registry can do, whether it is embedded in this process or reached over gRPC.

`weft_registry.embedded.EmbeddedRegistry` and `weft_registry.remote.registry.RemoteRegistry` both are one. Everything is
synchronous; an asyncio caller runs it in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from weft_registry.reference import AdapterName

if TYPE_CHECKING:
    from weft_registry.manifest import Manifest

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
    # Imported here: a listing of ten thousand adapters reads no manifest, and is over before this is loaded.
    from weft_registry.manifest import Manifest

    return Manifest.parse(manifest_bytes)


@dataclass(frozen=True)
class Published:
    """The answer to a publish."""

    version: Version
    existing: bool
    """The same content was already there under this name."""


class VersionSummary(NamedTuple):
    """One version in a listing: what is known without reading its manifest. A tuple: thousands are made at once."""

    adapter: AdapterName
    digest: str
    kind: str
    base: str
    """Name or repository of the base model, at most 255 characters of it."""
    base_weights_sha256: str
    tags: tuple[str, ...]
    aliases: tuple[str, ...]
    published_at: datetime
    size_bytes: int
    published_by: str = ""
    parent_digest: str = ""


class AdapterSummary(NamedTuple):
    """One adapter in a listing."""

    adapter: AdapterName
    version_count: int
    """Of versions that are not yanked."""
    latest: VersionSummary | None
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
class Deleted:
    """What was deleted."""

    digest: str
    freed_bytes: int
    """Of blobs that no other version has: they go with the next collection."""


@dataclass(frozen=True)
class VersionQuery:
    """Which versions to find. Everything that is said must hold; yanked versions are never found."""

    namespace: str = ""
    kind: str = ""
    base: str = ""
    """Name or repository of the base model, or the fingerprint of its weights, or its first digits."""
    label: str = ""
    """A tag or an alias that names the version, or its digest."""
    conditions: tuple[str, ...] = ()
    """ "NAME OP NUMBER" each, on the manifest's metrics: see `weft_registry.conditions`. One that was measured several
    times must hold each time."""
    parent_digest: str = ""
    """Only versions that were trained on from this one."""
    published_after: datetime | None = None
    published_before: datetime | None = None
    order_by: str = "name"
    """"name" (the newest version of each first), "published", "size", or "metric:NAME" (the least, where it was
    measured several times; only versions that have it); a leading "-" turns it around."""
    all_versions: bool = False
    """Every version, and not only what "latest" names."""


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
class AliasNews:
    """What a watch says: a move, or that only time has passed."""

    sequence: int
    """Everything up to here was said: a watch that begins after it misses nothing and repeats nothing."""
    move: AliasMove | None = None
    """None at the beginning, and where nothing moved for a while."""


class AliasWatch(Protocol):
    """An endless iterator over `AliasNews`; the first one comes at once. It ends when it or its registry is closed."""

    def __iter__(self) -> Iterator[AliasNews]:
        """Itself."""
        ...

    def __next__(self) -> AliasNews:
        """Waits for the next piece of news. Raises `StopIteration` once closed."""
        ...

    def close(self) -> None:
        """Ends the watch, from any thread: a `next` that waits returns."""
        ...


@dataclass(frozen=True)
class VerifyReport:
    """The outcome of re-hashing a version."""

    digest: str
    checked_files: int
    checked_bytes: int
    problems: tuple[str, ...]


class RegistryApi(Protocol):
    """A registry. Methods raise the errors of `weft_registry.errors`, with the statuses that registry.proto states."""

    def find_missing(self, digests: Sequence[str], adapter: AdapterName | None = None) -> list[str]:
        """Which of these blobs have to be sent for `adapter` (None: for the caller's only namespace): those that are
        not held, or only by namespaces of others. The rest stays for an hour."""
        ...

    def upload(
        self,
        path: Path,
        digest: str,
        size_bytes: int,
        progress: Progress | None = None,
        adapter: AdapterName | None = None,
    ) -> None:
        """Sends one file as a blob for `adapter`, resuming an upload of it that was broken off."""
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

    def read_blob(self, digest: str, offset: int = 0, limit: int = 0, *, unverified: bool = False) -> Iterator[bytes]:
        """A blob's bytes in chunks; `limit` 0 reads to the end.

        Raises `CorruptionError` before the last of damaged bytes is given; with `unverified` that is left to the
        caller, who hashes them.
        """
        ...

    def set_alias(self, adapter: AdapterName, alias: str, target: str, expected_etag: str = "") -> Alias:
        """Points an alias at a version (a tag, alias or digest of the same adapter)."""
        ...

    def delete_alias(self, adapter: AdapterName, alias: str, expected_etag: str = "") -> str:
        """Removes an alias; the digest that it pointed at."""
        ...

    def rollback_alias(self, adapter: AdapterName, alias: str, expected_etag: str = "", steps: int = 1) -> Alias:
        """Points an alias at what it named before its last `steps` moves, as one more move."""
        ...

    def list_alias_moves(self, adapter: AdapterName, alias: str = "", limit: int = 100) -> list[AliasMove]:
        """The last moves of an adapter's aliases (of one, unless `alias` is empty), newest first."""
        ...

    def watch_aliases(self, adapters: Sequence[AdapterName] = (), after: int = 0) -> AliasWatch:
        """Follows the moves of these adapters' aliases; without any, of all that the caller may read. Goes on after the
        sequence `after` without a gap; 0 is from now on, -1 from the beginning. Raises `OffsetError` for a sequence
        that the registry has not come to, at once or with the first piece of news."""
        ...

    def yank(self, reference: str, reason: str = "") -> Version:
        """Hides a version from new resolves and listings."""
        ...

    def delete_version(self, reference: str) -> Deleted:
        """Removes a version for ever."""
        ...

    def search_versions(self, query: VersionQuery) -> list[Version]:
        """Versions by what is in their manifests."""
        ...

    def put_signature(self, reference: str, key_digest: str, bundle: bytes) -> Signature:
        """Keeps a signature of a version beside it; it takes the place of an earlier one by the same key."""
        ...

    def list_signatures(self, reference: str) -> list[Signature]:
        """The signatures of a version, the oldest first. Nobody has checked them."""
        ...

    def verify(self, reference: str) -> VerifyReport:
        """Re-hashes everything of a version."""
        ...

    def who_am_i(self) -> Identity:
        """Who the caller is to this registry."""
        ...

    @property
    def stale_note(self) -> str | None:
        """What came with the last answer that may be out of date, "since=TIME; upstream=HOST:PORT": from a mirror whose
        upstream is away. None where all answers were what there is."""
        ...

    def close(self) -> None:
        """Releases connections and files."""
        ...
