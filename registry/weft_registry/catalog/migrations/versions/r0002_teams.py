"""What a team needs: identities, quotas, an audit log, history that outlives versions, search, signatures, branches."""

from __future__ import annotations

import json
import re
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import TypeEngine

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_LISTED = [
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
]
_SHOWN = ["adapter_id", "id", "yanked", "digest", "kind", "base_id", "size_bytes", "published_at_us"]
_NO_CHANGES = "the audit log is only ever added to"


def _text(length: int) -> TypeEngine[str]:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    """Changes the tables, and fills from the manifests what is searched by from now on."""
    op.add_column("versions", sa.Column("parent_digest", sa.String(71), nullable=False, server_default=""))
    op.create_index("ix_versions_parent_digest", "versions", ["parent_digest"])
    op.add_column("versions", sa.Column("published_by", sa.String(128), nullable=False, server_default=""))
    op.add_column("versions", sa.Column("base_id", sa.String(255), nullable=False, server_default=""))
    op.create_index("versions_listed", "versions", _LISTED)
    op.create_index("versions_shown", "versions", _SHOWN)
    op.create_table(
        "version_metrics",
        sa.Column("version_id", sa.Integer, sa.ForeignKey("versions.id"), primary_key=True),
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("split", sa.String(64), primary_key=True),
        sa.Column("value", sa.Float, nullable=False),
    )
    op.create_index("version_metrics_by_value", "version_metrics", ["name", "value"])
    _keep_moves()
    op.create_table(
        "protected_aliases",
        sa.Column("namespace", _text(96), primary_key=True),
        sa.Column("name", _text(96), primary_key=True),
        sa.Column("alias", _text(128), primary_key=True),
        sa.Column("token_names", sa.Text, nullable=False),
    )
    op.create_table(
        "blob_leases",
        sa.Column("sha256", sa.String(71), primary_key=True),
        sa.Column("namespace", _text(96), primary_key=True),
        sa.Column("until_us", sa.BigInteger, nullable=False, index=True),
    )
    op.create_table(
        "uploads",
        sa.Column("upload_id", sa.String(96), primary_key=True),
        sa.Column("namespace", _text(96), primary_key=True),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("touched_at_us", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "held_blobs",
        sa.Column("sha256", sa.String(71), primary_key=True),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("read_at_us", sa.BigInteger, nullable=False, index=True),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("name", _text(128), nullable=False, unique=True),
        sa.Column("secret_sha256", sa.String(71), nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("namespaces", sa.Text, nullable=False),
        sa.Column("created_at_us", sa.BigInteger, nullable=False),
        sa.Column("created_by", sa.String(128), nullable=False),
        sa.Column("expires_at_us", sa.BigInteger),
        sa.Column("revoked_at_us", sa.BigInteger),
    )
    op.create_table(
        "quotas",
        sa.Column("namespace", _text(96), primary_key=True),
        sa.Column("max_bytes", sa.BigInteger),
        sa.Column("max_versions", sa.BigInteger),
        sa.Column("max_open_uploads", sa.BigInteger),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at_us", sa.BigInteger, nullable=False, index=True),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("namespace", _text(96), nullable=False, index=True),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    _only_added_to()
    op.create_table(
        "signatures",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("version_id", sa.Integer, sa.ForeignKey("versions.id"), nullable=False),
        sa.Column("key_sha256", sa.String(71), nullable=False),
        sa.Column("bundle", sa.LargeBinary, nullable=False),
        sa.Column("added_at_us", sa.BigInteger, nullable=False),
        sa.Column("added_by", sa.String(128), nullable=False),
        sa.UniqueConstraint("version_id", "key_sha256"),
    )
    op.create_table(
        "branches",
        sa.Column("adapter_id", sa.Integer, sa.ForeignKey("adapters.id"), primary_key=True),
        sa.Column("branch", _text(128), primary_key=True),
        sa.Column("head", sa.String(40), nullable=False),
        sa.Column("updated_at_us", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "branch_files",
        sa.Column("adapter_id", sa.Integer, sa.ForeignKey("adapters.id"), primary_key=True),
        sa.Column("branch", _text(128), primary_key=True),
        sa.Column("path", sa.String(255), primary_key=True),
        sa.Column("sha256", sa.String(71), nullable=False, index=True),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
    )
    _fill_from_manifests()
    op.execute("UPDATE settings SET value = '2' WHERE key = 'schema_version'")


def _keep_moves() -> None:
    """Moves name digests instead of rows, which may be deleted from now on."""
    op.rename_table("alias_moves", "alias_moves_of_rows")
    op.drop_index("ix_alias_moves_adapter_id", "alias_moves_of_rows")
    op.create_table(
        "alias_moves",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("adapter_id", sa.Integer, sa.ForeignKey("adapters.id"), nullable=False, index=True),
        sa.Column("alias", _text(128), nullable=False),
        sa.Column("digest", sa.String(71), nullable=False, server_default=""),
        sa.Column("previous_digest", sa.String(71), nullable=False, server_default=""),
        sa.Column("etag", sa.String(32), nullable=False),
        sa.Column("moved_at_us", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.String(128), nullable=False, server_default=""),
        sqlite_autoincrement=True,
    )
    op.execute(
        "INSERT INTO alias_moves (adapter_id, alias, digest, previous_digest, etag, moved_at_us) "
        "SELECT m.adapter_id, m.alias, COALESCE(new.digest, ''), COALESCE(old.digest, ''), m.etag, m.moved_at_us "
        "FROM alias_moves_of_rows m LEFT JOIN versions new ON new.id = m.version_id "
        "LEFT JOIN versions old ON old.id = m.previous_version_id ORDER BY m.id"
    )
    op.drop_table("alias_moves_of_rows")


def _only_added_to() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION audit_is_only_added_to() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{_NO_CHANGES}'; END $$"
        )
        op.execute(
            "CREATE TRIGGER audit_is_only_added_to BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
            "FOR EACH STATEMENT EXECUTE FUNCTION audit_is_only_added_to()"
        )
        return
    for act in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_takes_no_{act.lower()} BEFORE {act} ON audit "
            f"BEGIN SELECT RAISE(ABORT, '{_NO_CHANGES}'); END"
        )


def _fill_from_manifests() -> None:
    """Reads the documents themselves, and not through today's classes, which will change."""
    connection = op.get_bind()
    versions = sa.table("versions", *(sa.column(name) for name in ("id", "manifest", "parent_digest", "base_id")))
    metrics = sa.table("version_metrics", *(sa.column(name) for name in ("version_id", "name", "split", "value")))
    ids = connection.execute(sa.select(versions.c.id)).scalars().all()
    for row in ids:
        manifest = connection.execute(sa.select(versions.c.manifest).where(versions.c.id == row)).scalar_one()
        document: dict[str, Any] = json.loads(bytes(manifest))
        base = document.get("base", {}).get("id", "")[:255]
        connection.execute(versions.update().where(versions.c.id == row).values(base_id=base))
        parent = document.get("provenance", {}).get("parent_version")
        if isinstance(parent, str) and re.fullmatch("sha256:[0-9a-f]{64}", parent):
            connection.execute(versions.update().where(versions.c.id == row).values(parent_digest=parent))
        found = {}
        for metric in document.get("metrics", []):
            try:
                value = float(metric["value"])
            except ValueError:
                continue
            if value - value == 0 and len(metric["name"]) <= 128 and len(metric["split"]) <= 64:  # Finite.
                found[metric["name"], metric["split"]] = value
        rows = [{"version_id": row, "name": n, "split": s, "value": v} for (n, s), v in found.items()]
        if rows:
            connection.execute(metrics.insert(), rows)
