"""Between the registry's dataclasses and its protobuf messages. Both sides of the wire use it."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from weft.v1 import adapter_pb2, registry_pb2
from weft_registry import api
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


def summary_message(summary: api.AdapterSummary) -> registry_pb2.AdapterSummary:
    """One adapter of a listing as it travels."""
    return registry_pb2.AdapterSummary(
        namespace=summary.adapter.namespace,
        name=summary.adapter.name,
        version_count=summary.version_count,
        latest=version_message(summary.latest) if summary.latest else None,
    )


def summary_from(message: registry_pb2.AdapterSummary) -> api.AdapterSummary:
    """The inverse of `summary_message`."""
    return api.AdapterSummary(
        adapter=AdapterName.parse(f"{message.namespace}/{message.name}"),
        version_count=message.version_count,
        latest=version_from(message.latest) if message.HasField("latest") else None,
    )


def alias_message(alias: api.Alias) -> registry_pb2.Alias:
    """An alias as it travels."""
    return registry_pb2.Alias(
        name=alias.name,
        version_digest=alias.digest,
        etag=alias.etag,
        moved_at=timestamp(alias.moved_at),
        previous_version_digest=alias.previous_digest,
    )


def alias_from(message: registry_pb2.Alias) -> api.Alias:
    """The inverse of `alias_message`."""
    return api.Alias(
        name=message.name,
        digest=message.version_digest,
        etag=message.etag,
        moved_at=message.moved_at.ToDatetime(tzinfo=UTC),
        previous_digest=message.previous_version_digest,
    )


def timestamp(time: datetime) -> Timestamp:
    """A time as it travels."""
    message = Timestamp()
    message.FromDatetime(time)
    return message
