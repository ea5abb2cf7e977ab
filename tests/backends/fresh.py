"""Storage of a test's own: on disk, or in a new database and under a new prefix of the servers in the environment."""

from __future__ import annotations

import atexit
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest

from weft_registry.catalog.database import Catalog
from weft_registry.storage import Storage

SERVER = os.environ.get("WEFT_TEST_DATABASE")
"""The URL of a PostgreSQL database whose role may create others."""
BUCKET = os.environ.get("WEFT_TEST_BLOBS")
"""The URL of a place for blobs, credentials in the environment."""


@contextmanager
def fresh_storage() -> Iterator[Storage]:
    """Empty storage, as the environment asks for; None in it means the registry's directory."""
    blobs = f"{BUCKET}/{uuid.uuid4().hex}" if BUCKET else None
    if SERVER is None:
        yield Storage(None, blobs)
        return
    with fresh_database(SERVER, _template(SERVER)) as url:
        yield Storage(url, blobs)


@contextmanager
def fresh_database(server: str, template: str = "template1") -> Iterator[str]:
    """The URL of a new database, a copy of `template`, dropped at the end with whoever is still in it."""
    name = f"weft_{uuid.uuid4().hex}"
    _run(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield _named(server, name)
    finally:
        _run(server, f"DROP DATABASE {name} WITH (FORCE)")


@cache
def _template(server: str) -> str:
    """A database with the tables of an empty catalog: copying it is faster than making them for every test."""
    name = f"weft_template_{uuid.uuid4().hex}"
    _run(server, f"CREATE DATABASE {name}")
    atexit.register(_run, server, f"DROP DATABASE {name} WITH (FORCE)")
    Catalog(_named(server, name)).close()
    return name


def _named(server: str, name: str) -> str:
    return server.rpartition("/")[0] + f"/{name}"


def _run(server: str, statement: str) -> None:
    import psycopg

    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(statement.encode())


only_on_disk = pytest.mark.skipif(bool(SERVER or BUCKET), reason="about the files under WEFT_HOME")
