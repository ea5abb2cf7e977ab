"""A registry before another one: answers from what it holds, asks the other one what labels name now, and brings what
it lacks. Both faces serve it as they serve any registry.

Who may read what is decided here, by this registry's own tokens, before the upstream is asked; it is asked with the
mirror's token. A digest that is known here is never asked for. Where the upstream does not answer, a label means what
it meant last, and the answer says so (`weft_registry.staleness`). Nothing can be published here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from weft_registry import artifact, staleness
from weft_registry import digest as digests
from weft_registry.access.blob_access import BlobAccess
from weft_registry.api import Signature, Version
from weft_registry.blobs.store import BlobLimits
from weft_registry.catalog import mirrored, records, signatures
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import CorruptionError, InvalidInputError, NotFoundError, PreconditionError
from weft_registry.home import Home
from weft_registry.manifest import Manifest
from weft_registry.mirror.blobs import PullThroughBlobs
from weft_registry.mirror.room import Room
from weft_registry.mirror.upstream import UnreachableError, Upstream
from weft_registry.principal import LOCAL
from weft_registry.reference import AdapterName, Reference
from weft_registry.signing import bundle as bundles
from weft_registry.storage import Storage

if TYPE_CHECKING:
    from weft_registry.workspaces.workspaces import Workspaces

LISTED_S = 2.0
"""An adapter's versions are listed upstream at most so often; a page after the first asks nothing."""

ASKS = frozenset({"resolve", "resolve_prefix", "list_versions", "page_versions", "list_signatures", "verify"})
"""What asks the upstream."""
BRINGS = frozenset({"read_blob", "open_blob", "verify_blob"})
"""What asks it for bytes that are not held."""
REFUSED = frozenset(
    {
        "find_missing",
        "upload",
        "start_upload",
        "query_upload",
        "write_upload",
        "finish_upload",
        "publish",
        "set_alias",
        "delete_alias",
        "rollback_alias",
        "protect_alias",
        "unprotect_alias",
        "yank",
        "delete_version",
        "put_signature",
    }
)
"""What is done at the upstream."""
REFUSED_TO_HUB_CLIENTS = frozenset(
    {
        "create_adapter",
        "delete_adapter",
        "target",
        "receive",
        "has",
        "commit",
        "create_branch",
        "delete_branch",
        "create_tag",
    }
)
"""Of `weft_registry.workspaces.workspaces.Workspaces`; a mirror has none."""


class MirrorRegistry(EmbeddedRegistry):
    """Owns what `EmbeddedRegistry` owns, the connection to the upstream, and with a bound the room for blobs."""

    def __init__(
        self,
        home: Home,
        upstream: Upstream,
        limits: BlobLimits | None = None,
        storage: Storage | None = None,
        max_held_bytes: int | None = None,
    ) -> None:
        """Asks the upstream nothing yet. `max_held_bytes` bounds the blobs that are held; None does not.

        Raises as `EmbeddedRegistry`, and `PreconditionError` for a registry that has versions of its own: what it and
        the upstream call by one name would be mixed up.
        """
        super().__init__(home, limits, storage)
        self.upstream = upstream
        with self._catalog.write() as connection:
            known = mirrored.upstream_of(connection)
            if known is None and mirrored.has_versions(connection):
                raise PreconditionError(
                    f"the registry in {self._catalog.where} has versions of its own: a mirror of {upstream.target} "
                    "needs one that is empty; name another WEFT_HOME",
                    reason="NOT_EMPTY",
                )
            if known != upstream.target:
                mirrored.become_mirror(connection, upstream.target, LOCAL.name)
        self.room = None if max_held_bytes is None else Room(max_held_bytes, self._catalog, self._blobs)
        scratch = home.registry / "fetching"
        self._blobs = PullThroughBlobs(self._blobs, upstream.read_blob, self._blob_size, scratch, room=self.room)
        self._access = BlobAccess(self._catalog, self._blobs, LOCAL)
        self._listed: dict[AdapterName, float] = {}
        self._listing = threading.Lock()

    def resolve(self, reference: str) -> Version:
        """See `RegistryApi.resolve`. Raises `UnreachableError` for what is not known while nobody answers there."""
        parsed = Reference.parse(reference)
        self._principal.check_read(parsed.adapter)
        if parsed.label is None:
            # A digest names the same bytes for ever.
            try:
                return super().resolve(reference)
            except NotFoundError:
                pass
        self._refresh(parsed)
        return super().resolve(reference)

    def resolve_prefix(self, adapter: AdapterName, prefix: str) -> Version | None:
        """See `EmbeddedRegistry.resolve_prefix`."""
        self._principal.check_read(adapter)
        try:
            found = super().resolve_prefix(adapter, prefix)
        except NotFoundError:
            found = None
        if found is not None:
            return found
        self._list(adapter)
        return super().resolve_prefix(adapter, prefix)

    def page_versions(
        self, adapter: AdapterName, include_yanked: bool, before: int, limit: int
    ) -> tuple[list[records.VersionRow], bool]:
        """See `EmbeddedRegistry.page_versions`: those that the upstream has now, or had when it answered last."""
        self._principal.check_read(adapter)
        if not before:
            self._list(adapter)
        with self._catalog.read() as connection:
            adapter_id = records.adapter_id(connection, adapter, self._principal.readable)
            return mirrored.page_versions(connection, adapter_id, include_yanked, before, limit)

    def list_signatures(self, reference: str) -> list[Signature]:
        """See `RegistryApi.list_signatures`: those of the upstream, kept here for when it is away."""
        version = self.resolve(reference)
        exactly = f"{version.adapter}@{version.digest}"
        try:
            there = self.upstream.ask(lambda remote: remote.list_signatures(exactly))
        except UnreachableError:
            staleness.note(self.upstream.stale_note)
            return super().list_signatures(exactly)
        here = super().list_signatures(exactly)
        if [(one.key_digest, one.bundle) for one in there] != [(one.key_digest, one.bundle) for one in here]:
            for one in there:
                bundles.check_subject(one.bundle, version.digest)
            with self._catalog.write() as connection:
                version_id = self._find(connection, Reference.parse(exactly))[0]
                signatures.replace(connection, version_id, there)
        return there

    @property
    def workspaces(self) -> Workspaces:
        """See `EmbeddedRegistry.workspaces`: there are none, and nobody makes one."""
        nowhere = super().workspaces
        for name in REFUSED_TO_HUB_CLIENTS:
            setattr(nowhere, name, partial(_REFUSING["publish"], self))
        return nowhere

    def refresh_alias(self, adapter: AdapterName, alias: str) -> None:
        """Finds out where an alias of the upstream points now, and keeps that. Raises as `resolve`."""
        self._refresh(Reference(adapter, alias))

    def holds(self, adapter: AdapterName) -> bool:
        """Whether anything is known here of an adapter."""
        with self._catalog.read() as connection:
            return records.find_adapter(connection, adapter) is not None

    def known_aliases(self) -> list[tuple[AdapterName, str]]:
        """Every alias that is known here."""
        with self._catalog.read() as connection:
            return mirrored.known_aliases(connection)

    def close(self) -> None:
        """See `RegistryApi.close`."""
        self.upstream.close()
        if self.room is not None:
            self.room.close()
        super().close()

    def _refresh(self, reference: Reference) -> None:
        """Makes the catalog say what the upstream says of a reference; without an answer it stays as it is."""
        try:
            version = self.upstream.ask(lambda remote: remote.resolve(str(reference)))
        except UnreachableError as error:
            with self._catalog.read() as connection:
                try:
                    records.resolve(connection, reference)
                except NotFoundError:
                    raise UnreachableError(
                        f"{reference} is not held here, and {error.message}",
                        metadata=error.metadata,
                        retry_after_s=error.retry_after_s,
                    ) from error
            staleness.note(self.upstream.stale_note)
            return
        except NotFoundError as error:
            if reference.label is not None:
                with self._catalog.write() as connection:
                    mirrored.forget_label(connection, reference.adapter, reference.label)
            if error.reason == "YANKED":
                # It names nothing but what was asked for.
                raise
            # Without the names that are near: they are those that the mirror may read, and not the caller.
            raise NotFoundError(
                f"{reference} is not in this registry, nor in the one that it mirrors", reason=error.reason
            ) from error
        if version.adapter != reference.adapter or (reference.digest or version.digest) != version.digest:
            raise CorruptionError(f"the upstream answered {version.adapter}@{version.digest} to {reference}")
        for label in self._remember([version]):
            # It has left this version; where it is now is asked at once, lest it be forgotten when nobody answers.
            with suppress(NotFoundError):
                self._refresh(Reference(reference.adapter, label))

    def _list(self, adapter: AdapterName) -> None:
        """Makes the catalog know every version of an adapter that the upstream has."""
        with self._listing:
            if time.monotonic() < self._listed.get(adapter, float("-inf")) + LISTED_S:
                return
        try:
            there = self.upstream.ask(lambda remote: remote.list_versions(adapter, include_yanked=True))
        except UnreachableError:
            staleness.note(self.upstream.stale_note)
            return
        except NotFoundError:
            there = []
        self._remember(there)
        with self._catalog.write() as connection:
            mirrored.forget_other_labels(connection, adapter, there)
        with self._listing:
            oldest = time.monotonic() - LISTED_S
            for name in [name for name, at in self._listed.items() if at < oldest]:
                del self._listed[name]
            self._listed[adapter] = time.monotonic()

    def _remember(self, versions: list[Version]) -> list[str]:
        """Writes down what is new. Answers the labels that these versions have here, and there no more."""
        with self._catalog.read() as connection:
            new = [version for version in versions if not mirrored.knows(connection, version)]
        checked = [(version, _checked(version)) for version in new]
        left: list[str] = []
        if checked:
            with self._catalog.write() as connection:
                for version, manifest in checked:
                    left += mirrored.remember(connection, version, manifest)
        return left

    def _blob_size(self, digest: str) -> int | None:
        with self._catalog.read() as connection:
            return mirrored.blob_size(connection, digest)

    def _refuse(self, what: str) -> NoReturn:
        raise PreconditionError(
            f"{what}: this registry is a mirror of {self.upstream.target}, and is only read: do it there "
            f"(--registry {self.upstream.target})",
            reason="READ_ONLY_MIRROR",
            metadata={"upstream": self.upstream.target},
        )


def _checked(version: Version) -> Manifest:
    """The manifest of a version as an upstream sent it. Raises `CorruptionError` for one that is not what it says."""
    found = digests.of_bytes(version.manifest_bytes)
    try:
        manifest = version.manifest
    except InvalidInputError as error:
        raise CorruptionError(f"the upstream sent a manifest of {version.adapter} that is none: {error}") from error
    wrong = artifact.check_paths((file.path for file in manifest.files), manifest.kind)
    if found != version.digest or manifest.canonical_bytes() != version.manifest_bytes or wrong:
        raise CorruptionError(
            f"the upstream sent a manifest of {version.adapter} that is not that of {version.digest}, but has the "
            f"digest {found}: nothing of it is kept",
            reason="DIGEST_MISMATCH",
            metadata={"digest": version.digest, "found": found},
        )
    return manifest


def _refusing(name: str) -> Callable[..., NoReturn]:
    def refuse(self: MirrorRegistry, *_arguments: Any, **_named: Any) -> NoReturn:
        self._refuse(name.replace("_", " "))

    refuse.__name__ = name
    refuse.__doc__ = f"Refused: see `EmbeddedRegistry.{name}`, at the upstream."
    return refuse


_REFUSING: Mapping[str, Callable[..., NoReturn]] = {name: _refusing(name) for name in REFUSED}
for _name, _function in _REFUSING.items():
    setattr(MirrorRegistry, _name, _function)
