"""The catalog's database: durable settings, one creator, no guessing at a newer schema."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.registry.lab import python
from weft_registry.catalog import tables
from weft_registry.catalog.database import Catalog
from weft_registry.errors import CorruptionError, PreconditionError, UnavailableError
from weft_registry.home import Home


def test_it_is_wal_and_synchronous_full_and_checks_foreign_keys(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "catalog.db")
    with catalog.read() as connection:
        found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in ("journal_mode", "synchronous")]
        assert found == ["wal", 2]
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1
    catalog.close()


def test_a_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "catalog.db")

    def fail() -> None:
        with catalog.write() as connection:
            connection.execute(tables.settings.insert().values(key="x", value="1"))
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail()
    with catalog.read() as connection:
        assert connection.execute(sa.select(tables.settings.c.key)).scalars().all() == ["schema_version"]
    catalog.close()


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    Catalog(tmp_path / "catalog.db").close()
    with sqlite3.connect(tmp_path / "catalog.db") as connection:
        connection.execute("UPDATE settings SET value = '99' WHERE key = 'schema_version'")
    connection.close()
    with pytest.raises(PreconditionError, match="upgrade Weft") as caught:
        Catalog(tmp_path / "catalog.db")
    assert caught.value.reason == "CATALOG_TOO_NEW"


def test_a_writer_that_waits_too_long_is_told_to_come_back(tmp_path: Path) -> None:
    first = Catalog(tmp_path / "catalog.db")
    second = Catalog(tmp_path / "catalog.db", busy_timeout_s=0.05)

    def write() -> None:
        with second.write():
            raise AssertionError("two writers at once")

    with first.write():
        with pytest.raises(UnavailableError) as caught:
            write()
        with second.read() as connection:  # Readers are not held up.
            assert connection.execute(sa.select(tables.settings.c.value)).scalar_one() == "1"
    assert caught.value.retry_after_s
    first.close()
    second.close()


def test_processes_that_open_a_new_registry_at_once_all_succeed(home: Home) -> None:
    script = (
        "import sys\n"
        "from weft_registry.embedded import EmbeddedRegistry\n"
        "from weft_registry.home import Home\n"
        "EmbeddedRegistry(Home.from_environment()).list_adapters()\n"
    )
    processes = [python(script, home=home) for _ in range(6)]
    outcomes = [(process.communicate(timeout=60)[1], process.returncode) for process in processes]
    assert outcomes == [("", 0)] * 6


def test_a_damaged_catalog_is_named_and_not_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    path.write_text("this is not a database, and never was one" * 100)
    with pytest.raises(CorruptionError, match=r"catalog\.db is damaged"):
        Catalog(path)
    path.unlink()
    catalog = Catalog(path)
    catalog.close()
    content = bytearray(path.read_bytes())
    content[200:] = b"\xff" * (len(content) - 200)
    path.write_bytes(content)
    with pytest.raises(CorruptionError, match="damaged"), Catalog(path).read() as connection:
        connection.execute(sa.select(tables.settings)).all()
