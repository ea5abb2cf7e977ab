"""The catalog's tables as Weft 0.1 made them: what upgrades begin with. Times are microseconds since 1970, UTC."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

SCHEMA_VERSION = 1
"""Raised with every change of the tables. A catalog with a newer one is refused, never guessed at."""

metadata = MetaData()

settings = Table(
    "settings", metadata, Column("key", String(64), primary_key=True), Column("value", Text, nullable=False)
)

adapters = Table(
    "adapters",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("namespace", String(96), nullable=False),
    Column("name", String(96), nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    UniqueConstraint("namespace", "name"),
)

# Rows are never changed, except to be yanked. `id` grows with every publish: it is the order "newest first" is in.
versions = Table(
    "versions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("adapter_id", ForeignKey("adapters.id"), nullable=False),
    Column("digest", String(71), nullable=False),
    Column("manifest", LargeBinary, nullable=False),
    Column("kind", String(64), nullable=False),
    Column("base_weights_sha256", String(71), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("published_at_us", BigInteger, nullable=False),
    Column("yanked", Boolean, nullable=False, default=False),
    Column("yank_reason", Text, nullable=False, default=""),
    UniqueConstraint("adapter_id", "digest"),
    sqlite_autoincrement=True,
)

# Which blobs are in use, without parsing manifests: what garbage collection will ask.
version_files = Table(
    "version_files",
    metadata,
    Column("version_id", ForeignKey("versions.id"), primary_key=True),
    Column("path", String(127), primary_key=True),
    Column("sha256", String(71), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Index("version_files_by_blob", "sha256"),
)

tags = Table(
    "tags",
    metadata,
    Column("adapter_id", ForeignKey("adapters.id"), primary_key=True),
    Column("tag", String(128), primary_key=True),
    Column("version_id", ForeignKey("versions.id"), nullable=False, index=True),
)

aliases = Table(
    "aliases",
    metadata,
    Column("adapter_id", ForeignKey("adapters.id"), primary_key=True),
    Column("alias", String(128), primary_key=True),
    Column("version_id", ForeignKey("versions.id"), nullable=False, index=True),
    Column("previous_version_id", ForeignKey("versions.id")),
    Column("etag", String(32), nullable=False),
    Column("moved_at_us", BigInteger, nullable=False),
)

# Every move of every alias, oldest first. `version_id` is NULL where the alias was removed.
alias_moves = Table(
    "alias_moves",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("adapter_id", ForeignKey("adapters.id"), nullable=False, index=True),
    Column("alias", String(128), nullable=False),
    Column("version_id", ForeignKey("versions.id")),
    Column("previous_version_id", ForeignKey("versions.id")),
    Column("etag", String(32), nullable=False),
    Column("moved_at_us", BigInteger, nullable=False),
)

publishes = Table(
    "publishes",
    metadata,
    Column("request_id", String(36), primary_key=True),
    Column("content_sha256", String(71), nullable=False),
    Column("version_id", ForeignKey("versions.id"), nullable=False),
    Column("existing", Boolean, nullable=False),
    Column("at_us", BigInteger, nullable=False),
)
