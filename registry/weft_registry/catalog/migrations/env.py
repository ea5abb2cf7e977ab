"""Alembic's entry: runs the revisions on the connection that `weft_registry.catalog.upgrade` gives it."""

from __future__ import annotations

from alembic import context

from weft_registry.catalog import tables

connection = context.config.attributes["connection"]
# Batches: SQLite changes a column by making the table anew.
context.configure(connection=connection, target_metadata=tables.metadata, render_as_batch=True)
context.run_migrations()
