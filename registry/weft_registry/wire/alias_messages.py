"""Between the dataclasses of aliases and their protobuf messages. Both sides of the wire use it."""

from __future__ import annotations

from datetime import UTC

from weft.v1 import registry_pb2
from weft_registry import api
from weft_registry.reference import AdapterName
from weft_registry.wire.messages import timestamp


def alias_message(alias: api.Alias) -> registry_pb2.Alias:
    """An alias as it travels."""
    return registry_pb2.Alias(
        name=alias.name,
        version_digest=alias.digest,
        etag=alias.etag,
        moved_at=timestamp(alias.moved_at),
        previous_version_digest=alias.previous_digest,
        protected=alias.protected,
    )


def alias_from(message: registry_pb2.Alias) -> api.Alias:
    """The inverse of `alias_message`."""
    return api.Alias(
        name=message.name,
        digest=message.version_digest,
        etag=message.etag,
        moved_at=message.moved_at.ToDatetime(tzinfo=UTC),
        previous_digest=message.previous_version_digest,
        protected=message.protected,
    )


def move_message(move: api.AliasMove) -> registry_pb2.AliasMove:
    """A move of an alias as it travels."""
    return registry_pb2.AliasMove(
        sequence=move.sequence,
        adapter=str(move.adapter),
        alias=move.alias,
        version_digest=move.digest,
        previous_version_digest=move.previous_digest,
        etag=move.etag,
        moved_at=timestamp(move.moved_at),
        actor=move.actor,
    )


def move_from(message: registry_pb2.AliasMove) -> api.AliasMove:
    """The inverse of `move_message`."""
    return api.AliasMove(
        sequence=message.sequence,
        adapter=AdapterName.parse(message.adapter),
        alias=message.alias,
        digest=message.version_digest,
        previous_digest=message.previous_version_digest,
        etag=message.etag,
        moved_at=message.moved_at.ToDatetime(tzinfo=UTC),
        actor=message.actor,
    )


def news_message(news: api.AliasNews) -> registry_pb2.WatchAliasesResponse:
    """What a watch says, as it travels."""
    return registry_pb2.WatchAliasesResponse(
        sequence=news.sequence, move=None if news.move is None else move_message(news.move)
    )


def news_from(message: registry_pb2.WatchAliasesResponse) -> api.AliasNews:
    """The inverse of `news_message`."""
    return api.AliasNews(message.sequence, move_from(message.move) if message.HasField("move") else None)
