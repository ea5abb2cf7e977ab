"""Between the registry's dataclasses and its protobuf messages. Both sides of the wire use it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from weft.v1 import adapter_pb2, registry_pb2
from weft_registry import api
from weft_registry.errors import InvalidInputError
from weft_registry.reference import AdapterName

MAX_CHUNK_BYTES = 1 << 20
MAX_MESSAGE_BYTES = 16 << 20
"""A manifest may have 8 MiB, which is more than the 4 MiB that gRPC receives by default."""


def version_message(version: api.Version) -> adapter_pb2.AdapterVersion:
    """A version as it travels, the manifest's files and base spelled out."""
    manifest = version.manifest
    return adapter_pb2.AdapterVersion(
        namespace=version.adapter.namespace,
        name=version.adapter.name,
        digest=version.digest,
        kind=manifest.kind,
        tags=version.tags,
        aliases=version.aliases,
        published_at=timestamp(version.published_at),
        size_bytes=version.size_bytes,
        yanked=version.yanked,
        yank_reason=version.yank_reason,
        manifest_json=version.manifest_bytes,
        files=[
            adapter_pb2.ArtifactFile(path=f.path, size_bytes=f.size, digest=f.sha256, media_type=f.media_type)
            for f in manifest.files
        ],
        base_id=manifest.base.id,
        base_weights_digest=manifest.base.weights_sha256,
        published_by=version.published_by,
        parent_digest=version.parent_digest,
    )


def version_from(message: adapter_pb2.AdapterVersion) -> api.Version:
    """The inverse of `version_message`. Raises `InvalidInputError` for a name that is none."""
    return api.Version(
        adapter=AdapterName.parse(f"{message.namespace}/{message.name}"),
        digest=message.digest,
        manifest_bytes=message.manifest_json,
        tags=tuple(message.tags),
        aliases=tuple(message.aliases),
        published_at=message.published_at.ToDatetime(tzinfo=UTC),
        size_bytes=message.size_bytes,
        yanked=message.yanked,
        yank_reason=message.yank_reason,
        published_by=message.published_by,
        parent_digest=message.parent_digest,
    )


def listed_message(version: api.VersionSummary) -> adapter_pb2.AdapterVersion:
    """A version of a listing as it travels: without its manifest and files."""
    return adapter_pb2.AdapterVersion(
        namespace=version.adapter.namespace,
        name=version.adapter.name,
        digest=version.digest,
        kind=version.kind,
        tags=version.tags,
        aliases=version.aliases,
        published_at=timestamp(version.published_at),
        size_bytes=version.size_bytes,
        base_id=version.base,
        base_weights_digest=version.base_weights_sha256,
        published_by=version.published_by,
        parent_digest=version.parent_digest,
    )


def listed_from(message: adapter_pb2.AdapterVersion) -> api.VersionSummary:
    """The inverse of `listed_message`."""
    return api.VersionSummary(
        adapter=AdapterName.parse(f"{message.namespace}/{message.name}"),
        digest=message.digest,
        kind=message.kind,
        base=message.base_id,
        base_weights_sha256=message.base_weights_digest,
        tags=tuple(message.tags),
        aliases=tuple(message.aliases),
        published_at=message.published_at.ToDatetime(tzinfo=UTC),
        size_bytes=message.size_bytes,
        published_by=message.published_by,
        parent_digest=message.parent_digest,
    )


def summary_message(summary: api.AdapterSummary) -> registry_pb2.AdapterSummary:
    """One adapter of a listing as it travels."""
    return registry_pb2.AdapterSummary(
        namespace=summary.adapter.namespace,
        name=summary.adapter.name,
        version_count=summary.version_count,
        latest=listed_message(summary.latest) if summary.latest else None,
    )


def summary_from(message: registry_pb2.AdapterSummary) -> api.AdapterSummary:
    """The inverse of `summary_message`."""
    return api.AdapterSummary(
        adapter=AdapterName.parse(f"{message.namespace}/{message.name}"),
        version_count=message.version_count,
        latest=listed_from(message.latest) if message.HasField("latest") else None,
    )


def query_message(query: api.VersionQuery) -> registry_pb2.SearchVersionsRequest:
    """A search as it travels."""
    return registry_pb2.SearchVersionsRequest(
        namespace=query.namespace,
        kind=query.kind,
        base=query.base,
        label=query.label,
        conditions=query.conditions,
        parent_digest=query.parent_digest,
        published_after=None if query.published_after is None else timestamp(query.published_after),
        published_before=None if query.published_before is None else timestamp(query.published_before),
        order_by=query.order_by,
        all_versions=query.all_versions,
    )


def query_from(message: registry_pb2.SearchVersionsRequest) -> api.VersionQuery:
    """The inverse of `query_message`. Raises `InvalidInputError` for a time that is none."""
    return api.VersionQuery(
        namespace=message.namespace,
        kind=message.kind,
        base=message.base,
        label=message.label,
        conditions=tuple(message.conditions),
        parent_digest=message.parent_digest,
        published_after=_time(message, "published_after"),
        published_before=_time(message, "published_before"),
        order_by=message.order_by or "name",
        all_versions=message.all_versions,
    )


def _time(
    message: registry_pb2.SearchVersionsRequest, field: Literal["published_after", "published_before"]
) -> datetime | None:
    if not message.HasField(field):
        return None
    try:
        found: datetime = getattr(message, field).ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidInputError(f"{field}: {error}") from None
    return found


def signature_message(signature: api.Signature) -> registry_pb2.Signature:
    """A signature as it travels."""
    return registry_pb2.Signature(
        key_digest=signature.key_digest,
        bundle=signature.bundle,
        added_at=timestamp(signature.added_at),
        added_by=signature.added_by,
    )


def signature_from(message: registry_pb2.Signature) -> api.Signature:
    """The inverse of `signature_message`."""
    return api.Signature(message.key_digest, message.bundle, message.added_at.ToDatetime(tzinfo=UTC), message.added_by)


def identity_message(identity: api.Identity) -> registry_pb2.WhoAmIResponse:
    """Who the caller is, as it travels."""
    return registry_pb2.WhoAmIResponse(
        name=identity.name,
        scopes=sorted(identity.scopes),
        namespaces=sorted(identity.namespaces),
        expires_at=None if identity.expires_at is None else timestamp(identity.expires_at),
    )


def identity_from(message: registry_pb2.WhoAmIResponse) -> api.Identity:
    """The inverse of `identity_message`."""
    return api.Identity(
        message.name, frozenset(message.scopes), frozenset(message.namespaces), optional_time(message, "expires_at")
    )


def optional_time(message: Message, field: str) -> datetime | None:
    """A time that may be absent."""
    return getattr(message, field).ToDatetime(tzinfo=UTC) if message.HasField(field) else None


def timestamp(time: datetime) -> Timestamp:
    """A time as it travels."""
    message = Timestamp()
    message.FromDatetime(time)
    return message
