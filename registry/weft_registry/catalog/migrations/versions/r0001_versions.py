"""Adapters, versions, tags, aliases: the catalog of Weft 0.1."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import TypeEngine

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _text(length: int) -> TypeEngine[str]:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "settings", sa.Column("key", sa.String(64), primary_key=True), sa.Column("value", sa.Text, nullable=False)
    )
    op.create_table(
        "adapters",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("namespace", _text(96), nullable=False),
        sa.Column("name", _text(96), nullable=False),
        sa.Column("created_at_us", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("namespace", "name"),
    )
    op.create_table(
        "versions",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("adapter_id", sa.Integer, sa.ForeignKey("adapters.id"), nullable=False),
        sa.Column("digest", _text(71), nullable=False),
        sa.Column("manifest", sa.LargeBinary, nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("base_weights_sha256", sa.String(71), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("published_at_us", sa.BigInteger, nullable=False),
        sa.Column("yanked", sa.Boolean, nullable=False),
        sa.Column("yank_reason", sa.Text, nullable=False),
        sa.UniqueConstraint("adapter_id", "digest"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "version_files",
        sa.Column("version_id", sa.Integer, sa.ForeignKey("versions.id"), primary_key=True),
        sa.Column("path", sa.String(127), primary_key=True),
        sa.Column("sha256", sa.String(71), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
    )
    op.create_index("version_files_by_blob", "version_files", ["sha256"])
    op.create_table(
        "tags",
        sa.Column("adapter_id", sa.Integer, sa.ForeignKey("adapters.id"), primary_key=True),
        sa.Column("tag", _text(128), primary_key=True),
        sa.Column("version_id", sa.Integer, sa.ForeignKey("versions.id"), nullable=False, index=True),
    )
    op.create_table(
        "aliases",
        sa.Column("adapter_id", sa.Integer, sa.ForeignKey("adapters.id"), primary_key=True),
        sa.Column("alias", _text(128), primary_key=True),
        sa.Column("version_id", sa.Integer, sa.ForeignKey("versions.id"), nullable=False, index=True),
        sa.Column("previous_version_id", sa.Integer, sa.ForeignKey("versions.id")),
        sa.Column("etag", sa.String(32), nullable=False),
        sa.Column("moved_at_us", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "alias_moves",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("adapter_id", sa.Integer, sa.ForeignKey("adapters.id"), nullable=False, index=True),
        sa.Column("alias", _text(128), nullable=False),
        sa.Column("version_id", sa.Integer, sa.ForeignKey("versions.id")),
        sa.Column("previous_version_id", sa.Integer, sa.ForeignKey("versions.id")),
        sa.Column("etag", sa.String(32), nullable=False),
        sa.Column("moved_at_us", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "publishes",
        sa.Column("request_id", sa.String(36), primary_key=True),
        sa.Column("content_sha256", sa.String(71), nullable=False),
        sa.Column("version_id", sa.Integer, sa.ForeignKey("versions.id"), nullable=False),
        sa.Column("existing", sa.Boolean, nullable=False),
        sa.Column("at_us", sa.BigInteger, nullable=False),
    )
    op.execute("INSERT INTO settings (key, value) VALUES ('schema_version', '1')")
