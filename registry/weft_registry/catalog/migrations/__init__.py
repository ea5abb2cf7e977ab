"""How a catalog's tables came to be what they are: one Alembic revision a file, applied when a catalog is opened."""
