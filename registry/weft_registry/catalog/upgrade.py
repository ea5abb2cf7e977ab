"""Brings a catalog's tables to what this Weft knows. Alembic is loaded only when there is something to do."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Connection

from weft_registry.catalog.revisions import HEAD as HEAD
from weft_registry.errors import PreconditionError

_KNOWN = ("0001", HEAD)
_REVISIONS = sa.table("alembic_version", sa.column("version_num"))


def revision_of(connection: Connection) -> str | None:
    """The revision that a catalog's tables are at; None for a database without any."""
    there = sa.inspect(connection)
    if there.has_table("alembic_version"):
        return connection.execute(sa.select(_REVISIONS.c.version_num)).scalar_one_or_none()
    if there.has_table("settings"):  # Weft 0.1 wrote no revisions.
        return "0001"
    return None


def is_current(connection: Connection, where: str) -> bool:
    """Whether the tables are at `HEAD`. Raises `PreconditionError` for a newer Weft's tables, and for others'."""
    revision = revision_of(connection)
    if revision is None and (others := sa.inspect(connection).get_table_names()):
        raise PreconditionError(
            f"{where} has tables, and they are no registry's ({', '.join(sorted(others)[:5])}): name a database of "
            "the registry's own",
            reason="NOT_A_CATALOG",
        )
    if revision is not None and revision not in _KNOWN:
        raise PreconditionError(
            f"{where} has catalog schema {revision}; this Weft knows {HEAD}: upgrade Weft",
            reason="CATALOG_TOO_NEW",
            metadata={"schema_version": revision},
        )
    return revision == HEAD


def upgrade(connection: Connection, where: str) -> None:
    """Applies what is missing, in the connection's transaction. Raises as `is_current`."""
    if is_current(connection, where):
        return
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "weft_registry.catalog:migrations")
    config.attributes["connection"] = connection
    if revision_of(connection) == "0001" and not sa.inspect(connection).has_table("alembic_version"):
        command.stamp(config, "0001")
    command.upgrade(config, HEAD)
