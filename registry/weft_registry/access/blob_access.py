"""The blobs as one identity may use them: what a namespace has not shown to hold is not there for it.

Blobs are shared between namespaces on disk, and nobody can tell. A namespace has a blob if one of its versions does, or
one of its branches, or if it sent the bytes lately (a lease); what only others have it must send in full, and may not
read. An identity that reads everything is told everything.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import sqlalchemy as sa
from sqlalchemy import Connection

from weft_registry import digest as digests_of
from weft_registry.access import quotas
from weft_registry.api import Progress
from weft_registry.blobs.store import BlobStore, UploadState, upload_id_of
from weft_registry.blobs.verified import no_blob
from weft_registry.catalog import leases, mirrored, records
from weft_registry.catalog import tables as t
from weft_registry.catalog.database import Catalog
from weft_registry.errors import CorruptionError, InvalidInputError, NotFoundError
from weft_registry.principal import EVERY, Principal, Scope
from weft_registry.reference import AdapterName

_MAX_REMEMBERED = 10_000
_MANY = 500
"""Digests to a statement: SQLite takes a limited number of parameters."""


class BlobAccess:
    """Owns what it remembers of leases; thread-safe. Raises what `BlobStore` raises, and `ForbiddenError`."""

    def __init__(self, catalog: Catalog, blobs: BlobStore, principal: Principal) -> None:
        self._catalog, self._blobs, self._principal = catalog, blobs, principal
        self._sees_all = principal.readable is None
        # Until when, by the monotonic clock, a lease that was taken here needs no renewal.
        self._leased: dict[tuple[str, str], float] = {}

    def find_missing(self, digests: Sequence[str], adapter: AdapterName | None) -> list[str]:
        """Those that have to be sent before `adapter` can be published. What has not stays for an hour: a lease."""
        namespace = self._publishing(adapter)
        return self._missing(digests, namespace)

    def put_file(
        self, path: Path, digest: str, size_bytes: int, adapter: AdapterName | None, progress: Progress | None
    ) -> None:
        """Stores a copy of a local file."""
        namespace = self._publishing(adapter)
        if self._sees_all:
            self._lease([digest], leases.ANYBODY)
        elif not self._blobs.missing([digest]) and digests_of.of_file(path) != digest:
            # The store takes what it holds already for granted; here it would be a way to get at others' bytes.
            raise CorruptionError(f"{path.name}: its bytes do not have the digest {digest}", reason="DIGEST_MISMATCH")
        self._blobs.put_file(path, digest, size_bytes, progress)
        if not self._sees_all:
            self._lease([digest], namespace)

    def start_upload(self, digest: str, size_bytes: int, adapter: AdapterName | None) -> UploadState:
        """See `BlobStore.start_upload`. Raises `ExhaustedError` where the namespace's quota is used up."""
        namespace = self._publishing(adapter)
        if not self._missing([digest], namespace):
            state = self._blobs.start_upload(digest, size_bytes)
            if state.complete:
                return state
        owner = "" if self._sees_all else owner_of(namespace)
        key = {"upload_id": upload_id_of(digest, size_bytes, owner), "namespace": namespace}
        now = {"touched_at_us": records.now_us()}
        u = t.uploads.c
        # One transaction: two uploads that begin at once must not both be the last one that the quota lets in.
        with self._catalog.write() as connection:
            here = sa.and_(u.upload_id == key["upload_id"], u.namespace == namespace)
            if not connection.execute(t.uploads.update().where(here).values(**now)).rowcount:
                if namespace != EVERY:
                    quotas.check_upload(connection, namespace, size_bytes)
                connection.execute(t.uploads.insert().values(**key, **now, actor=self._principal.name))
            return self._blobs.start_upload(digest, size_bytes, owner)

    def query_upload(self, upload_id: str) -> UploadState:
        """See `BlobStore.query_upload`."""
        namespace = self._uploading(upload_id)
        try:
            return self._blobs.query_upload(upload_id)
        except NotFoundError:
            # The answer to `finish` may have been lost: then the namespace has the blob by its lease.
            digest, size_bytes = f"sha256:{upload_id[:64]}", upload_id[65:].partition("-")[0]
            whole = digests_of.is_digest(digest) and size_bytes.isascii() and size_bytes.isdecimal()
            if namespace is None or not whole or self._missing([digest], namespace):
                raise
            return UploadState(upload_id, int(size_bytes), int(size_bytes), complete=True)

    def write_upload(self, upload_id: str, offset: int, chunk: bytes) -> UploadState:
        """See `BlobStore.write_upload`."""
        self._uploading(upload_id)
        return self._blobs.write_upload(upload_id, offset, chunk)

    def finish_upload(self, upload_id: str) -> UploadState:
        """See `BlobStore.finish_upload`. The bytes are the namespace's from here on: it has shown them."""
        namespace = self._uploading(upload_id)
        try:
            state = self._blobs.finish_upload(upload_id)
        except CorruptionError:
            self._ended(upload_id, None)
            raise
        self._ended(upload_id, leases.ANYBODY if namespace is None else namespace)
        return state

    def read(self, digest: str, offset: int, limit: int, *, unverified: bool) -> Iterator[bytes]:
        """See `BlobStore.read`."""
        self._check_readable(digest)
        return self._blobs.read(digest, offset, limit, unverified=unverified)

    def open(self, digest: str) -> BinaryIO:
        """See `BlobStore.open`."""
        self._check_readable(digest)
        return self._blobs.open(digest)

    def verify(self, digest: str) -> int:
        """See `BlobStore.verify`."""
        self._check_readable(digest)
        return self._blobs.verify(digest)

    def claim(self, digests: Sequence[str], namespace: str) -> list[str]:
        """Before a publish looks at its blobs: leases those that `namespace` has, and returns those that it lacks."""
        return self._missing(digests, namespace)

    def _missing(self, digests: Sequence[str], namespace: str) -> list[str]:
        for digest in digests:
            digests_of.check(digest)
        if self._sees_all:
            # Leased first: what is there now is still there when it is published.
            self._lease(digests, leases.ANYBODY)
            return self._blobs.missing(digests)
        with self._catalog.read() as connection:
            known = held_by(connection, digests, [namespace], [namespace])
        has = [digest for digest in digests if digest in known]
        self._lease(has, namespace)
        here = known - set(self._blobs.missing(has))
        return [digest for digest in digests if digest not in here]

    def _lease(self, digests: Sequence[str], namespace: str) -> None:
        """Writes only where there is not half a lease left: most calls find one, and need not even ask."""
        for digest in digests:
            digests_of.check(digest)
        now_s = time.monotonic()
        if not (asked := [digest for digest in digests if self._leased.get((digest, namespace), 0.0) <= now_s]):
            return
        with self._catalog.read() as connection:
            held = leases.held(connection, asked, [namespace], leases.LEASE_S / 2)
        if wanted := [digest for digest in asked if digest not in held]:
            with self._catalog.write() as connection:
                leases.take(connection, wanted, namespace)
        if len(self._leased) > _MAX_REMEMBERED:
            self._leased.clear()
        self._leased.update(dict.fromkeys(((digest, namespace) for digest in wanted), now_s + leases.LEASE_S / 2))

    def _ended(self, upload_id: str, lease_to: str | None) -> None:
        with self._catalog.write() as connection:
            connection.execute(t.uploads.delete().where(t.uploads.c.upload_id == upload_id))
            if lease_to is not None:
                leases.take(connection, [f"sha256:{upload_id[:64]}"], lease_to)

    def _check_readable(self, digest: str) -> None:
        digests_of.check(digest)
        if self._sees_all:
            return
        principal = self._principal
        senders = [namespace for namespace in principal.namespaces if principal.may(Scope.PUBLISH, namespace)]
        with self._catalog.read() as connection:
            if digest in held_by(connection, [digest], principal.readable or (), senders):
                return
        raise no_blob(digest)

    def _publishing(self, adapter: AdapterName | None) -> str:
        """The namespace that the caller sends bytes for."""
        principal = self._principal
        if adapter is not None:
            namespace = adapter.namespace
        elif self._sees_all or len(principal.namespaces) != 1:
            namespace = EVERY
        else:
            (namespace,) = principal.namespaces
        if namespace == EVERY and not self._sees_all and principal.scopes:
            raise InvalidInputError("adapter: missing: say which adapter these bytes are for")
        principal.check(Scope.PUBLISH, namespace)
        with self._catalog.read() as connection:
            # `publish` asks again; here it is told before gigabytes are sent.
            mirrored.refuse_to_publish(connection, self._catalog.where)
        return namespace

    def _uploading(self, upload_id: str) -> str | None:
        """The namespace of the caller that an upload is of; None for whoever publishes everywhere. Raises
        `NotFoundError` for one of others."""
        principal = self._principal
        if principal.may(Scope.PUBLISH, EVERY):
            return None
        mine = [namespace for namespace in sorted(principal.namespaces) if principal.may(Scope.PUBLISH, namespace)]
        if not mine:
            principal.check(Scope.PUBLISH, min(principal.namespaces, default=EVERY))
        suffix = upload_id.rpartition("-")[2]
        for namespace in mine:
            if suffix == owner_of(namespace) and upload_id.count("-") == 2:
                return namespace
        raise NotFoundError(
            f"no open upload {upload_id[:100]!r}: start it again",
            reason="UPLOAD_NOT_FOUND",
            metadata={"upload_id": upload_id[:100]},
        )


def owner_of(namespace: str) -> str:
    """How the uploads of a namespace are told from those of others."""
    return hashlib.sha256(namespace.encode()).hexdigest()[:12]


def held_by(
    connection: Connection, digests: Sequence[str], namespaces: Iterable[str], senders: Iterable[str]
) -> set[str]:
    """Those of `digests` that versions or branches in `namespaces` have, or that `senders` have shown lately."""
    where, found = list(namespaces), leases.held(connection, digests, list(senders))
    in_versions = sa.select(t.version_files.c.sha256).select_from(t.version_files.join(t.versions).join(t.adapters))
    in_branches = sa.select(t.branch_files.c.sha256).select_from(t.branch_files.join(t.adapters))
    for table, statement in ((t.version_files, in_versions), (t.branch_files, in_branches)):
        left = [digest for digest in digests if digest not in found]
        for start in range(0, len(left), _MANY):
            here = sa.and_(table.c.sha256.in_(left[start : start + _MANY]), t.adapters.c.namespace.in_(where))
            found.update(connection.execute(statement.where(here).distinct()).scalars())
    return found
