"""The catalog's tables. Times are whole microseconds since 1970, UTC.

A change here is a new file in `migrations/versions`; a test compares what the migrations make with what is said here.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
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
from sqlalchemy.types import TypeEngine


def _text(length: int) -> TypeEngine[str]:
    """A string that is compared byte by byte on every database: pages of a listing and digests' prefixes rely on it."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")


metadata = MetaData()

# "schema_version" tells Weft before 0.2, which knows no migrations, that a catalog is too new for it.
settings = Table(
    "settings", metadata, Column("key", String(64), primary_key=True), Column("value", Text, nullable=False)
)

adapters = Table(
    "adapters",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("namespace", _text(96), nullable=False),
    Column("name", _text(96), nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    UniqueConstraint("namespace", "name"),
)

# Rows are never changed, except to be yanked. `id` grows with every publish: it is the order "newest first" is in.
versions = Table(
    "versions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("adapter_id", ForeignKey("adapters.id"), nullable=False),
    Column("digest", _text(71), nullable=False),
    Column("manifest", LargeBinary, nullable=False),
    Column("kind", String(64), nullable=False),
    Column("base_weights_sha256", String(71), nullable=False),
    # The base model's name, cut where it is longer than this; the manifest has all of it.
    Column("base_id", String(255), nullable=False, server_default=""),
    # The version that it was trained on from, by the manifest; empty for none.
    Column("parent_digest", String(71), nullable=False, server_default="", index=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("published_at_us", BigInteger, nullable=False),
    Column("published_by", String(128), nullable=False, server_default=""),
    Column("yanked", Boolean, nullable=False, default=False),
    Column("yank_reason", Text, nullable=False, default=""),
    UniqueConstraint("adapter_id", "digest"),
    # What listings and searches ask of versions, without their manifests: SQLite would read through every manifest to
    # reach what is stored behind it.
    Index(
        "versions_listed",
        "adapter_id",
        "yanked",
        "digest",
        "kind",
        "base_weights_sha256",
        "base_id",
        "parent_digest",
        "size_bytes",
        "published_at_us",
        "published_by",
    ),
    # What the table of `weft list` shows, and how many versions an adapter has: less than half as much to read.
    Index(
        "versions_shown",
        "adapter_id",
        "id",
        "yanked",
        "digest",
        "kind",
        "base_id",
        "size_bytes",
        "published_at_us",
    ),
    sqlite_autoincrement=True,
)

# What versions can be searched and sorted by, without parsing manifests.
version_metrics = Table(
    "version_metrics",
    metadata,
    Column("version_id", ForeignKey("versions.id"), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("split", String(64), primary_key=True),
    Column("value", Float, nullable=False),
    Index("version_metrics_by_value", "name", "value"),
)

# Which blobs are in use, without parsing manifests: what garbage collection asks.
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
    Column("tag", _text(128), primary_key=True),
    Column("version_id", ForeignKey("versions.id"), nullable=False, index=True),
)

aliases = Table(
    "aliases",
    metadata,
    Column("adapter_id", ForeignKey("adapters.id"), primary_key=True),
    Column("alias", _text(128), primary_key=True),
    Column("version_id", ForeignKey("versions.id"), nullable=False, index=True),
    Column("previous_version_id", ForeignKey("versions.id")),
    Column("etag", String(32), nullable=False),
    Column("moved_at_us", BigInteger, nullable=False),
)

# Every move of every alias, oldest first. `version_id` is NULL where the alias was removed. Digests, and not row ids:
# the history outlives versions that are deleted.
alias_moves = Table(
    "alias_moves",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("adapter_id", ForeignKey("adapters.id"), nullable=False, index=True),
    Column("alias", _text(128), nullable=False),
    Column("digest", String(71), nullable=False, server_default=""),
    Column("previous_digest", String(71), nullable=False, server_default=""),
    Column("etag", String(32), nullable=False),
    Column("moved_at_us", BigInteger, nullable=False),
    Column("actor", String(128), nullable=False, server_default=""),
    sqlite_autoincrement=True,
)

# Aliases that only some tokens, and administrators, may move. An empty `name` means every adapter of the namespace.
protected_aliases = Table(
    "protected_aliases",
    metadata,
    Column("namespace", _text(96), primary_key=True),
    Column("name", _text(96), primary_key=True),
    Column("alias", _text(128), primary_key=True),
    Column("token_names", Text, nullable=False),  # A JSON list.
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

# Blobs that somebody has just sent, or was just told are there, and will publish soon: garbage collection leaves them,
# and the namespace that showed the bytes need not show them again.
blob_leases = Table(
    "blob_leases",
    metadata,
    Column("sha256", String(71), primary_key=True),
    Column("namespace", _text(96), primary_key=True),
    Column("until_us", BigInteger, nullable=False, index=True),
)

# Uploads under way, counted by namespace.
uploads = Table(
    "uploads",
    metadata,
    Column("upload_id", String(96), primary_key=True),
    Column("namespace", _text(96), primary_key=True),
    Column("actor", String(128), nullable=False),
    Column("touched_at_us", BigInteger, nullable=False),
)

# What a mirror with a bound holds, and when each blob was last read. Follows the store, and keeps nothing from going.
held_blobs = Table(
    "held_blobs",
    metadata,
    Column("sha256", String(71), primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("read_at_us", BigInteger, nullable=False, index=True),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("name", _text(128), nullable=False, unique=True),
    Column("secret_sha256", String(71), nullable=False),
    Column("scopes", Text, nullable=False),  # A JSON list.
    Column("namespaces", Text, nullable=False),  # A JSON list; ["*"] means every one.
    Column("created_at_us", BigInteger, nullable=False),
    Column("created_by", String(128), nullable=False),
    Column("expires_at_us", BigInteger),
    Column("revoked_at_us", BigInteger),
)

# What a namespace may hold; NULL is no limit. The namespace "*" says it for all that have no row of their own.
quotas = Table(
    "quotas",
    metadata,
    Column("namespace", _text(96), primary_key=True),
    Column("max_bytes", BigInteger),
    Column("max_versions", BigInteger),
    Column("max_open_uploads", BigInteger),
)

# Who did what, in the transaction that did it. Only ever added to: triggers refuse all else.
audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at_us", BigInteger, nullable=False, index=True),
    Column("actor", String(128), nullable=False),
    Column("action", String(32), nullable=False),
    Column("namespace", _text(96), nullable=False, index=True),
    Column("subject", Text, nullable=False),
    Column("detail", Text, nullable=False),  # A JSON object.
    sqlite_autoincrement=True,
)

signatures = Table(
    "signatures",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("version_id", ForeignKey("versions.id"), nullable=False),
    Column("key_sha256", String(71), nullable=False),
    Column("bundle", LargeBinary, nullable=False),
    Column("added_at_us", BigInteger, nullable=False),
    Column("added_by", String(128), nullable=False),
    UniqueConstraint("version_id", "key_sha256"),
)

# What Hub clients have committed to a branch and not published yet.
branches = Table(
    "branches",
    metadata,
    Column("adapter_id", ForeignKey("adapters.id"), primary_key=True),
    Column("branch", _text(128), primary_key=True),
    Column("head", String(40), nullable=False),
    Column("updated_at_us", BigInteger, nullable=False),
)

branch_files = Table(
    "branch_files",
    metadata,
    Column("adapter_id", ForeignKey("adapters.id"), primary_key=True),
    Column("branch", _text(128), primary_key=True),
    Column("path", String(255), primary_key=True),
    Column("sha256", String(71), nullable=False, index=True),
    Column("size_bytes", BigInteger, nullable=False),
)
