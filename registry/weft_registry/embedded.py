"""The registry in this process: catalog and blobs under WEFT_HOME. Implements `weft_registry.api.RegistryApi`.

Several processes may have it open at once. A version exists from the commit of one transaction on, and that
transaction begins only after its blobs are stored, synced and re-hashed: a kill at any moment leaves a whole registry.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import sqlalchemy as sa

from weft_registry import artifact, canonical, parts
from weft_registry import digest as digests
from weft_registry.access.principal import LOCAL, Principal
from weft_registry.api import AdapterSummary, Alias, Progress, Published, VerifyReport, Version
from weft_registry.base import BaseStore
from weft_registry.blobs.store import BlobLimits, BlobStore
from weft_registry.catalog import changes, records
from weft_registry.catalog import tables as t
from weft_registry.errors import (
    AlreadyExistsError,
    ConflictError,
    CorruptionError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
)
from weft_registry.home import Home
from weft_registry.manifest import Manifest
from weft_registry.reference import LATEST, AdapterName, Reference, check_label, check_name
from weft_registry.storage import Storage

MAX_LABELS = 64
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class EmbeddedRegistry:
    """Owns `home.registry`: the catalog and the blobs in it. Thread-safe."""

    def __init__(self, home: Home, limits: BlobLimits | None = None, storage: Storage | None = None) -> None:
        storage = storage or Storage()
        self._bases = BaseStore(home.bases)
        self._catalog = storage.open_catalog(home.registry)
        self._blobs = storage.open_blobs(home.registry, limits)
        self._principal = LOCAL

    def acting_as(self, principal: Principal) -> EmbeddedRegistry:
        """This registry, as `principal` may use it. Whoever opened the registry closes it, and not this."""
        view = copy.copy(self)
        view._principal = principal
        return view

    @property
    def blobs(self) -> BlobStore:
        """The store itself, for a service that receives uploads."""
        return self._blobs

    def find_missing(self, digests: Sequence[str]) -> list[str]:
        """See `RegistryApi.find_missing`."""
        return self._blobs.missing(digests)

    def upload(self, path: Path, digest: str, size_bytes: int, progress: Progress | None = None) -> None:
        """See `RegistryApi.upload`. Raises `CorruptionError` if the file does not have the digest and size."""
        self._blobs.put_file(path, digest, size_bytes, progress)

    def publish(
        self,
        adapter: AdapterName,
        manifest_bytes: bytes,
        *,
        tags: Sequence[str] = (),
        aliases: Sequence[str] = (),
        request_id: str = "",
    ) -> Published:
        """See `RegistryApi.publish`. Errors as for `Publish` in registry.proto."""
        # Imported here: only a publish needs numpy.
        from weft_registry import validation

        for label in (*tags, *aliases):
            check_label(label)
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
        manifest = Manifest.parse(manifest_bytes)
        violations = artifact.check_paths((file.path for file in manifest.files), manifest.kind)
        if violations:
            raise artifact.refused("the artifact is refused", violations)
        missing = self._blobs.missing(sorted({file.sha256 for file in manifest.files}))
        if missing:
            raise PreconditionError(
                f"{len(missing)} blobs are missing, the first is {missing[0]}: upload them, then publish",
                reason="BLOBS_MISSING",
                metadata={"missing": ",".join(missing[:10])},
            )
        for digest in sorted({file.sha256 for file in manifest.files}):
            self._blobs.verify(digest)
        known = self._bases.by_weights(manifest.base.weights_sha256)
        validation.validate(manifest_bytes, lambda file: self._blobs.open(file.sha256), known[1] if known else None)
        parts.resolve_parts(self.resolve, manifest)
        with self._catalog.write() as connection:
            return changes.insert_version(
                connection, adapter, manifest, manifest_bytes, tags, aliases, request_id, content, self._principal.name
            )

    def resolve(self, reference: str) -> Version:
        """See `RegistryApi.resolve`."""
        parsed = Reference.parse(reference)
        with self._catalog.read() as connection:
            return records.resolve(connection, parsed)

    def resolve_prefix(self, adapter: AdapterName, prefix: str) -> Version | None:
        """The version whose digest begins with `prefix` ("sha256:" and some of its digits), yanked or not.

        None if there is none, or more than one. Raises `NotFoundError` for an adapter that is not there.
        """
        with self._catalog.read() as connection:
            version_id = records.find_prefix(connection, records.adapter_id(connection, adapter), prefix)
            return None if version_id is None else records.versions(connection, [version_id])[0]

    def list_adapters(self, namespace: str = "") -> list[AdapterSummary]:
        """See `RegistryApi.list_adapters`."""
        return self.page_adapters(namespace, "", None)

    def page_adapters(self, namespace: str, after: str, limit: int | None) -> list[AdapterSummary]:
        """One page of `list_adapters`: those after the name `after`. A `limit` of None means all."""
        if namespace:
            check_name(namespace, "namespace")
        with self._catalog.read() as connection:
            return records.page_adapters(connection, namespace, after, limit)

    def list_versions(self, adapter: AdapterName, *, include_yanked: bool = False) -> list[Version]:
        """See `RegistryApi.list_versions`."""
        return [row.version for row in self.page_versions(adapter, include_yanked, 0, 1 << 30)[0]]

    def page_versions(
        self, adapter: AdapterName, include_yanked: bool, before: int, limit: int
    ) -> tuple[list[records.VersionRow], bool]:
        """One page of `list_versions`, and whether there are more: see `records.page_versions`."""
        with self._catalog.read() as connection:
            return records.page_versions(connection, adapter, include_yanked, before, limit)

    def read_blob(self, digest: str, offset: int = 0, limit: int = 0) -> Iterator[bytes]:
        """See `RegistryApi.read_blob`."""
        return self._blobs.read(digest, offset, limit)

    def set_alias(self, adapter: AdapterName, alias: str, target: str, expected_etag: str = "") -> Alias:
        """See `RegistryApi.set_alias`. Errors as for `SetAlias` in registry.proto."""
        check_label(alias, "alias")
        reference = target_reference(adapter, target)
        with self._catalog.write() as connection:
            adapter_id = records.adapter_id(connection, adapter)
            if changes.find_tag(connection, adapter_id, alias) is not None:
                raise AlreadyExistsError(f"{adapter}:{alias} is a tag, which never moves: choose another alias")
            current = records.alias(connection, adapter_id, alias)
            etag = current.etag if current else "none"
            if expected_etag and expected_etag != etag:
                at = f"at {current.digest} (etag {etag})" if current else "not there"
                raise ConflictError(
                    f"{adapter}:{alias} is {at}, not at etag {expected_etag[:40]}: somebody moved it; read it again",
                    reason="ALIAS_MOVED",
                    metadata={"alias": alias, "etag": etag, "digest": current.digest if current else ""},
                )
            version = records.resolve(connection, reference)
            if version.yanked:
                raise PreconditionError(
                    f"{adapter}@{version.digest} is yanked: an alias cannot point at it",
                    reason="YANKED",
                    metadata={"digest": version.digest},
                )
            version_id = records.find_digest(connection, adapter_id, version.digest)
            changes.move_alias(connection, adapter_id, alias, version_id, self._principal.name)
            moved = records.alias(connection, adapter_id, alias)
            assert moved is not None
            return moved

    def yank(self, reference: str, reason: str = "") -> Version:
        """See `RegistryApi.yank`. Errors as for `Yank` in registry.proto; yanking twice changes nothing."""
        parsed = Reference.parse(reference)
        if len(reason) > 1000:
            raise InvalidInputError(f"reason: {len(reason)} characters; at most 1000")
        with self._catalog.write() as connection:
            version = records.resolve(connection, parsed)
            adapter_id = records.adapter_id(connection, parsed.adapter)
            pointing = [alias for alias in version.aliases if alias != LATEST]
            if pointing:
                raise PreconditionError(
                    f"{parsed.adapter}:{pointing[0]} points at {version.digest}: move the alias "
                    f"{', '.join(repr(alias) for alias in pointing)} to another version first",
                    reason="ALIAS_POINTS_HERE",
                    metadata={"aliases": ",".join(pointing), "digest": version.digest},
                )
            v = t.versions.c
            version_id = records.find_digest(connection, adapter_id, version.digest)
            assert version_id is not None
            if not version.yanked:
                connection.execute(
                    t.versions.update().where(v.id == version_id).values(yanked=True, yank_reason=reason)
                )
            if LATEST in version.aliases:
                newest = connection.execute(
                    sa.select(v.id)
                    .where(v.adapter_id == adapter_id, v.yanked.is_(False))
                    .order_by(v.id.desc())
                    .limit(1)
                ).scalar_one_or_none()
                changes.move_alias(connection, adapter_id, LATEST, newest, self._principal.name)
            return records.versions(connection, [version_id])[0]

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

    def close(self) -> None:
        """See `RegistryApi.close`."""
        self._catalog.close()

    def _earlier(self, request_id: str, content: str) -> Published | None:
        if not request_id:
            return None
        with self._catalog.read() as connection:
            return changes.answered(connection, request_id, content)


def target_reference(adapter: AdapterName, target: str) -> Reference:
    """What `target` means within `adapter`: a tag, an alias, a digest, or a whole reference to the same adapter.

    Raises `InvalidInputError`.
    """
    if "/" not in target:
        separator = "@" if target.startswith("sha256:") else ":"
        target = f"{adapter}{separator}{target}"
    reference = Reference.parse(target)
    if reference.adapter != adapter:
        raise InvalidInputError(f"target: {target[:200]} is not a version of {adapter}")
    return reference
