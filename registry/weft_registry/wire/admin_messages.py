"""Between the values of `weft_registry.admin_api` and their protobuf messages. Both sides of the wire use it."""

from __future__ import annotations

from datetime import UTC

from weft.v1 import registry_admin_pb2 as pb
from weft_registry import admin_api
from weft_registry.wire.messages import optional_time, timestamp

_LIMITS = ("max_bytes", "max_versions", "max_open_uploads")


def token_message(token: admin_api.Token) -> pb.Token:
    """A token as it travels, without its secret."""
    return pb.Token(
        id=token.id,
        name=token.name,
        scopes=sorted(token.scopes),
        namespaces=sorted(token.namespaces),
        created_at=timestamp(token.created_at),
        created_by=token.created_by,
        expires_at=None if token.expires_at is None else timestamp(token.expires_at),
        revoked_at=None if token.revoked_at is None else timestamp(token.revoked_at),
    )


def token_from(message: pb.Token) -> admin_api.Token:
    """The inverse of `token_message`."""
    return admin_api.Token(
        id=message.id,
        name=message.name,
        scopes=frozenset(message.scopes),
        namespaces=frozenset(message.namespaces),
        created_at=message.created_at.ToDatetime(tzinfo=UTC),
        created_by=message.created_by,
        expires_at=optional_time(message, "expires_at"),
        revoked_at=optional_time(message, "revoked_at"),
    )


def quota_message(quota: admin_api.Quota) -> pb.Quota:
    """A quota as it travels: a limit that is none is absent."""
    limits = {field: getattr(quota, field) for field in _LIMITS}
    return pb.Quota(namespace=quota.namespace, **{field: limit for field, limit in limits.items() if limit is not None})


def quota_from(message: pb.Quota) -> admin_api.Quota:
    """The inverse of `quota_message`."""
    limits = {field: getattr(message, field) for field in _LIMITS if message.HasField(field)}
    return admin_api.Quota(message.namespace, **limits)


def usage_from(message: pb.GetQuotaResponse) -> admin_api.Usage:
    """What a namespace holds, and may."""
    return admin_api.Usage(quota_from(message.quota), message.used_bytes, message.used_versions, message.open_uploads)


def protected_message(alias: admin_api.ProtectedAlias) -> pb.ProtectedAlias:
    """A protection as it travels."""
    return pb.ProtectedAlias(
        namespace=alias.namespace, name=alias.name, alias=alias.alias, token_names=list(alias.token_names)
    )


def protected_from(message: pb.ProtectedAlias) -> admin_api.ProtectedAlias:
    """The inverse of `protected_message`."""
    return admin_api.ProtectedAlias(message.namespace, message.name, message.alias, tuple(message.token_names))


def entry_message(entry: admin_api.AuditEntry) -> pb.AuditEntry:
    """A line of the audit log as it travels."""
    return pb.AuditEntry(
        sequence=entry.sequence,
        at=timestamp(entry.at),
        actor=entry.actor,
        action=entry.action,
        namespace=entry.namespace,
        subject=entry.subject,
        detail_json=entry.detail_json,
    )


def entry_from(message: pb.AuditEntry) -> admin_api.AuditEntry:
    """The inverse of `entry_message`."""
    return admin_api.AuditEntry(
        message.sequence,
        message.at.ToDatetime(tzinfo=UTC),
        message.actor,
        message.action,
        message.namespace,
        message.subject,
        message.detail_json,
    )
