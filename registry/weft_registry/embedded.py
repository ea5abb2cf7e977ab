"""The registry in this process: catalog and blobs under WEFT_HOME. Implements `weft_registry.api.RegistryApi`.

Several processes may have it open at once. A version exists from the commit of one transaction on, and that
transaction begins only after its blobs are stored, synced and re-hashed: a kill at any moment leaves a whole registry.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sqlalchemy import Connection

from weft_registry import artifact, canonical, parts, words
from weft_registry import digest as digests
from weft_registry.access import quotas
from weft_registry.access.administration import Administration
from weft_registry.access.authenticator import Authenticator
from weft_registry.access.blob_access import BlobAccess
from weft_registry.access.denials import DenialLog
from weft_registry.api import AdapterSummary, Deleted, Progress, Published, VerifyReport, Version, VersionQuery
from weft_registry.base import BaseStore
from weft_registry.blobs.store import BlobLimits, BlobStore, UploadState
from weft_registry.catalog import aliases as alias_moves
from weft_registry.catalog import audit, changes, deletion, listing, mirrored, protection, records, search
from weft_registry.catalog import tables as t
from weft_registry.catalog.alias_feed import AliasFeed
from weft_registry.embedded_aliases import EmbeddedAliases
from weft_registry.embedded_signatures import EmbeddedSignatures
from weft_registry.errors import (
    CorruptionError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
)
from weft_registry.home import Home
from weft_registry.principal import EVERY, LOCAL, Principal, Scope
from weft_registry.reference import LATEST, AdapterName, Reference, check_label, check_name
from weft_registry.storage import Storage
from weft_registry.upkeep.embedded import Upkeep

if TYPE_CHECKING:
    from weft_registry.workspaces.workspaces import Workspaces

MAX_LABELS = 64
_ALL = 1 << 30
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class EmbeddedRegistry(EmbeddedAliases, EmbeddedSignatures, Administration, Upkeep):
    """Owns `home.registry`: the catalog and the blobs in it. Thread-safe.

    Every method checks what `acting_as` said: `NotFoundError` for what one may not read, `ForbiddenError` (for nobody
    in particular `UnauthenticatedError`) for what one may not do.
    """

    def __init__(self, home: Home, limits: BlobLimits | None = None, storage: Storage | None = None) -> None:
        storage = storage or Storage.from_environment()
        self._bases = BaseStore(home.bases)
        self._catalog = storage.open_catalog(home.registry)
        self._blobs = storage.open_blobs(home.registry, limits)
        self._upload_idle_s = (limits or BlobLimits()).upload_idle_s
        self._feed = AliasFeed(self._catalog)
        self._denials = DenialLog(self._catalog)
        self._scratch = home.registry / "receiving"
        self._principal = LOCAL
        self._access = BlobAccess(self._catalog, self._blobs, LOCAL)

    def authenticator(self, anonymous: Principal) -> Authenticator:
        """Who calls this registry, by their tokens; `anonymous` is who says none."""
        return Authenticator(self._catalog, anonymous)

    def acting_as(self, principal: Principal) -> EmbeddedRegistry:
        """This registry, as `principal` may use it. Whoever opened the registry closes it, and not this."""
        view = copy.copy(self)
        view._principal = replace(principal, on_denied=self._denials.note)
        view._access = BlobAccess(self._catalog, self._blobs, view._principal)
        return view

    @property
    def where(self) -> tuple[str, str]:
        """The catalog and the blobs, as messages name them: without passwords."""
        return self._catalog.where, self._blobs.where

    @property
    def blobs(self) -> BlobStore:
        """The store itself, for whoever keeps the registry: nothing is checked there."""
        self._principal.check(Scope.ADMIN, EVERY)
        return self._blobs

    @property
    def workspaces(self) -> Workspaces:
        """What Hub clients commit to, as the same identity may."""
        # Imported here: only commits need what reads foreign formats.
        from weft_registry.workspaces.workspaces import Workspaces

        return Workspaces(self._catalog, self._blobs, self._access, self._bases, self._principal, self.publish)

    @property
    def scratch(self) -> Path:
        """Where whoever receives files may put them before they are blobs."""
        return self._scratch

    def find_missing(self, digests: Sequence[str], adapter: AdapterName | None = None) -> list[str]:
        """See `RegistryApi.find_missing`."""
        return self._access.find_missing(digests, adapter)

    def upload(
        self,
        path: Path,
        digest: str,
        size_bytes: int,
        progress: Progress | None = None,
        adapter: AdapterName | None = None,
    ) -> None:
        """See `RegistryApi.upload`. Raises `CorruptionError` if the file does not have the digest and size."""
        self._access.put_file(path, digest, size_bytes, adapter, progress)

    def start_upload(self, digest: str, size_bytes: int, adapter: AdapterName | None = None) -> UploadState:
        """Opens an upload for `adapter`, or finds the open one. Errors as for `StartUpload` in registry.proto."""
        return self._access.start_upload(digest, size_bytes, adapter)

    def query_upload(self, upload_id: str) -> UploadState:
        """How far an upload is. Errors as for `QueryUpload` in registry.proto."""
        return self._access.query_upload(upload_id)

    def write_upload(self, upload_id: str, offset: int, chunk: bytes) -> UploadState:
        """Appends to an upload. Errors as for `WriteUpload` in registry.proto."""
        return self._access.write_upload(upload_id, offset, chunk)

    def finish_upload(self, upload_id: str) -> UploadState:
        """Makes the received bytes a blob. Errors as for `WriteUpload` in registry.proto."""
        return self._access.finish_upload(upload_id)

    def publish(
        self,
        adapter: AdapterName,
        manifest_bytes: bytes,
        *,
        tags: Sequence[str] = (),
        aliases: Sequence[str] = (),
        request_id: str = "",
        follow: bool = True,
        within: Callable[[Connection], None] | None = None,
    ) -> Published:
        """See `RegistryApi.publish`. Errors as for `Publish` in registry.proto.

        Without `follow`, "latest" stays where it is, unless it is nowhere. `within` happens first in the same
        transaction; what it raises undoes all.
        """
        # Imported here: only a publish needs numpy.
        from weft_registry import validation

        self._principal.check(Scope.PUBLISH, adapter.namespace)
        for label in (*tags, *aliases):
            check_label(label)
        if set(aliases) - {LATEST}:
            self._principal.check(Scope.ALIAS, adapter.namespace)
        if LATEST in tags or set(tags) & set(aliases) or len(tags) + len(aliases) > MAX_LABELS:
            raise InvalidInputError(
                f"tags and aliases: at most {MAX_LABELS}, no word as both, and {LATEST!r} is an alias, not a tag"
            )
        if request_id and not _UUID.fullmatch(request_id):
            raise InvalidInputError(f"request_id: {request_id[:50]!r} is not a UUID")
        content = digests.of_bytes(
            canonical.dumps([str(adapter), digests.of_bytes(manifest_bytes), sorted(tags), sorted(aliases)])
        )
        earlier = self._earlier(request_id, content)
        if earlier is not None:
            return earlier
        # All that a manifest alone can be refused for comes before gigabytes are hashed.
        manifest = validation.check_manifest(manifest_bytes)
        blobs = sorted({file.sha256 for file in manifest.files})
        # Leased before they are looked at: from here on no garbage collection takes them away.
        _refuse_missing(self._access.claim(blobs, adapter.namespace))
        known = self._bases.by_weights(manifest.base.weights_sha256)
        with _collected_is_missing():
            weights = next(file.sha256 for file in manifest.files if file.path == artifact.WEIGHTS)
            for digest in blobs:
                if digest != weights:
                    self._blobs.verify(digest)
            try:
                # This hashes the weights, tensor by tensor, in the one pass that looks at every number of them; unless
                # that was done when they arrived.
                validation.check_files(
                    manifest,
                    lambda file: self._blobs.open(file.sha256),
                    known[1] if known else None,
                    self._blobs.knows_sound,
                )
            except InvalidInputError:
                self._blobs.verify(weights)  # A damaged blob is no fault of who publishes it.
                raise
        parts.resolve_parts(self.resolve, manifest)
        actor = self._principal.name
        with self._catalog.write() as connection:
            if request_id and (earlier := changes.answered(connection, request_id, content)):
                return earlier
            mirrored.refuse_to_publish(connection, self._catalog.where)
            if within is not None:
                within(connection)
            protection.check_may_move(connection, self._principal, adapter, aliases)
            published = changes.insert_version(
                connection, adapter, manifest, manifest_bytes, tags, aliases, request_id, content, actor, follow
            )
            if not published.existing:
                quotas.check_publish(connection, adapter.namespace)
            # A lease may have run out while gigabytes were hashed.
            _refuse_missing(self._blobs.missing(blobs))
            # A part may have been deleted or yanked meanwhile.
            parts.resolve_parts(lambda part: records.resolve(connection, Reference.parse(part)), manifest)
            detail = {"tags": list(tags), "aliases": list(aliases), "existing": published.existing}
            reference = f"{adapter}@{published.version.digest}"
            audit.record(connection, actor, "publish", adapter.namespace, reference, detail)
            return published

    def resolve(self, reference: str) -> Version:
        """See `RegistryApi.resolve`."""
        parsed = Reference.parse(reference)
        self._principal.check_read(parsed.adapter)
        with self._catalog.read() as connection:
            return records.resolve(connection, parsed, self._principal.readable)

    def resolve_prefix(self, adapter: AdapterName, prefix: str) -> Version | None:
        """The version whose digest begins with `prefix` ("sha256:" and some of its digits), yanked or not.

        None if there is none, or more than one. Raises `NotFoundError` for an adapter that is not there.
        """
        self._principal.check_read(adapter)
        with self._catalog.read() as connection:
            adapter_id = records.adapter_id(connection, adapter, self._principal.readable)
            version_id = records.find_prefix(connection, adapter_id, prefix)
            return None if version_id is None else records.versions(connection, [version_id])[0]

    def list_adapters(self, namespace: str = "") -> list[AdapterSummary]:
        """See `RegistryApi.list_adapters`."""
        return self.page_summaries(namespace, "", None)

    def page_summaries(self, namespace: str, after: str, limit: int | None) -> list[AdapterSummary]:
        """One page of `list_adapters`: those after the name `after`. A `limit` of None means all."""
        if namespace:
            check_name(namespace, "namespace")
        with self._catalog.read() as connection:
            return listing.page_summaries(connection, namespace, after, limit, self._principal.readable)

    def page_adapters(self, namespace: str, after: str, limit: int | None) -> list[records.LatestOf]:
        """The same with whole versions, manifests included, which takes many times as long."""
        if namespace:
            check_name(namespace, "namespace")
        with self._catalog.read() as connection:
            return records.page_adapters(connection, namespace, after, limit, self._principal.readable)

    def list_versions(self, adapter: AdapterName, *, include_yanked: bool = False) -> list[Version]:
        """See `RegistryApi.list_versions`."""
        return [row.version for row in self.page_versions(adapter, include_yanked, 0, _ALL)[0]]

    def page_versions(
        self, adapter: AdapterName, include_yanked: bool, before: int, limit: int
    ) -> tuple[list[records.VersionRow], bool]:
        """One page of `list_versions`, and whether there are more: see `records.page_versions`."""
        self._principal.check_read(adapter)
        with self._catalog.read() as connection:
            return records.page_versions(connection, adapter, include_yanked, before, limit, self._principal.readable)

    def read_blob(self, digest: str, offset: int = 0, limit: int = 0, *, unverified: bool = False) -> Iterator[bytes]:
        """See `RegistryApi.read_blob`."""
        return self._access.read(digest, offset, limit, unverified=unverified)

    def open_blob(self, digest: str) -> BinaryIO:
        """A blob as a seekable file, its digest NOT checked. Raises `NotFoundError`."""
        return self._access.open(digest)

    def verify_blob(self, digest: str) -> int:
        """Re-hashes a blob and returns its size in bytes. Raises `NotFoundError` or `CorruptionError`."""
        return self._access.verify(digest)

    def yank(self, reference: str, reason: str = "") -> Version:
        """See `RegistryApi.yank`. Errors as for `Yank` in registry.proto; yanking twice changes nothing."""
        parsed = Reference.parse(reference)
        if len(reason) > 1000:
            raise InvalidInputError(f"reason: {len(reason)} characters; at most 1000")
        if words.has_control(reason):
            raise InvalidInputError("reason: a control character in its text")
        if not self._principal.may(Scope.PUBLISH, parsed.adapter.namespace):
            self._principal.check_read(parsed.adapter)
            self._principal.check(Scope.PUBLISH, parsed.adapter.namespace)
        with self._catalog.write() as connection:
            version = records.resolve(connection, parsed)
            adapter_id = records.adapter_id(connection, parsed.adapter)
            alias_moves.check_unnamed(parsed.adapter, version, "yanked")
            v = t.versions.c
            version_id = records.find_digest(connection, adapter_id, version.digest)
            assert version_id is not None
            if not version.yanked:
                connection.execute(
                    t.versions.update().where(v.id == version_id).values(yanked=True, yank_reason=reason)
                )
                subject = f"{parsed.adapter}@{version.digest}"
                audit.record(
                    connection, self._principal.name, "yank", parsed.adapter.namespace, subject, {"reason": reason}
                )
            if LATEST in version.aliases:
                alias_moves.retreat_latest(connection, adapter_id, version_id, self._principal.name)
            return records.versions(connection, [version_id])[0]

    def delete_version(self, reference: str) -> Deleted:
        """See `RegistryApi.delete_version`. Errors as for `DeleteVersion` in registry.proto."""
        parsed = Reference.parse(reference)
        if not self._principal.may(Scope.PUBLISH, parsed.adapter.namespace):
            self._principal.check_read(parsed.adapter)
            self._principal.check(Scope.PUBLISH, parsed.adapter.namespace)
        with self._catalog.write() as connection:
            return deletion.delete_version(connection, self._principal, parsed)

    def search_versions(self, query: VersionQuery) -> list[Version]:
        """See `RegistryApi.search_versions`."""
        return [found.version for found in self.page_search(query, "", _ALL)[0]]

    def page_search(self, query: VersionQuery, page_token: str, limit: int) -> tuple[list[search.Found], bool]:
        """One page of `search_versions`, and whether there are more: see `search.search`."""
        weights = ""
        if query.base in self._bases.names():
            weights = self._bases.get(query.base).fingerprint.weights_sha256
        with self._catalog.read() as connection:
            return search.search(connection, query, self._principal.readable, weights, page_token, limit)

    def verify(self, reference: str) -> VerifyReport:
        """See `RegistryApi.verify`. Damage is reported, not raised."""
        version = self.resolve(reference)
        problems: list[str] = []
        if digests.of_bytes(version.manifest_bytes) != version.digest:
            problems.append(f"the stored manifest no longer has the digest {version.digest}")
        files, size = 0, 0
        for file in version.manifest.files:
            try:
                files, size = files + 1, size + self._blobs.verify(file.sha256)
            except (CorruptionError, NotFoundError) as error:
                problems.append(f"{file.path}: {error.message}")
        return VerifyReport(version.digest, files, size, tuple(problems))

    @property
    def stale_note(self) -> str | None:
        """See `RegistryApi.stale_note`. A registry in this process notes it where its answers are sent, see
        `weft_registry.staleness`."""
        return None

    def close(self) -> None:
        """See `RegistryApi.close`."""
        self._feed.close()
        self._denials.close()
        self._catalog.close()

    def _earlier(self, request_id: str, content: str) -> Published | None:
        if not request_id:
            return None
        with self._catalog.read() as connection:
            return changes.answered(connection, request_id, content)


@contextmanager
def _collected_is_missing() -> Iterator[None]:
    """A blob whose lease ran out, and that was collected while it was looked at, is missing as one that never came."""
    try:
        yield
    except NotFoundError as error:
        if error.reason != "BLOB_NOT_FOUND":
            raise
        _refuse_missing([error.metadata["digest"]])


def _refuse_missing(missing: Sequence[str]) -> None:
    if missing:
        raise PreconditionError(
            f"{len(missing)} blobs are missing, the first is {missing[0]}: upload them, then publish",
            reason="BLOBS_MISSING",
            metadata={"missing": ",".join(missing[:10])},
        )
