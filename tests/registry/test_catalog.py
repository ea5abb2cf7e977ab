"""The catalog's database: durable settings, one creator, no guessing at a newer schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from tests.backends.fresh import only_on_disk
from tests.registry import tables_0_1
from tests.registry.lab import python
from weft_registry.catalog import audit, tables
from weft_registry.catalog.database import Catalog
from weft_registry.errors import CorruptionError, PreconditionError, UnavailableError
from weft_registry.home import Home


@only_on_disk
def test_it_is_wal_and_synchronous_full_and_checks_foreign_keys(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "catalog.db")
    with catalog.read() as connection:
        found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in ("journal_mode", "synchronous")]
        assert found == ["wal", 2]
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1
    catalog.close()


def test_a_failed_transaction_leaves_nothing(database: Path | str) -> None:
    catalog = Catalog(database)

    def fail() -> None:
        with catalog.write() as connection:
            connection.execute(tables.settings.insert().values(key="x", value="1"))
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail()
    with catalog.read() as connection:
        assert connection.execute(sa.select(tables.settings.c.key)).scalars().all() == ["schema_version"]
    catalog.close()


def test_a_newer_schema_is_refused(database: Path | str) -> None:
    catalog = Catalog(database)
    with catalog.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    catalog.close()
    with pytest.raises(PreconditionError, match="upgrade Weft") as caught:
        Catalog(database)
    assert caught.value.reason == "CATALOG_TOO_NEW"


def test_a_writer_that_waits_too_long_is_told_to_come_back(database: Path | str) -> None:
    first = Catalog(database)
    second = Catalog(database, busy_timeout_s=0.05)

    def write() -> None:
        with second.write():
            raise AssertionError("two writers at once")

    with first.write():
        with pytest.raises(UnavailableError) as caught:
            write()
        with second.read() as connection:  # Readers are not held up.
            assert connection.execute(sa.select(tables.settings.c.value)).scalar_one() == "2"
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


@only_on_disk
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


def test_the_migrations_make_the_tables_that_are_declared(database: Path | str) -> None:
    catalog = Catalog(database)
    with catalog.read() as connection:
        found = compare_metadata(MigrationContext.configure(connection), tables.metadata)
    catalog.close()
    assert found == []


@only_on_disk
def test_a_catalog_of_weft_0_1_is_upgraded_and_keeps_everything(tmp_path: Path) -> None:
    """As 0.1 left it: no revisions, moves that name rows, metrics in the manifests alone."""
    path = tmp_path / "catalog.db"
    old = tables_0_1.metadata
    engine = sa.create_engine(f"sqlite:///{path}")
    manifest = {
        "provenance": {"parent_version": "sha256:" + 64 * "b"},
        "metrics": [
            {"name": "exact_match", "value": "0.75", "split": "eval"},
            {"name": "loss", "value": "nan", "split": "eval"},
        ],
    }
    with engine.begin() as connection:
        old.create_all(connection)
        connection.execute(old.tables["settings"].insert().values(key="schema_version", value="1"))
        connection.execute(old.tables["adapters"].insert().values(id=1, namespace="a", name="b", created_at_us=1))
        for row, letter in ((1, "c"), (2, "d")):
            version = {
                "id": row,
                "adapter_id": 1,
                "digest": "sha256:" + 64 * letter,
                "manifest": json.dumps(manifest).encode(),
                "kind": "lora",
                "base_weights_sha256": "sha256:" + 64 * "e",
                "size_bytes": 5,
                "published_at_us": row,
                "yanked": False,
                "yank_reason": "",
            }
            connection.execute(old.tables["versions"].insert().values(**version))
        for old_row, new_row in ((None, 1), (1, 2), (2, None)):
            move = {"adapter_id": 1, "alias": "x", "version_id": new_row, "previous_version_id": old_row, "etag": "t"}
            connection.execute(old.tables["alias_moves"].insert().values(**move, moved_at_us=7))
    engine.dispose()

    catalog = Catalog(path)
    with catalog.read() as connection:
        moves = connection.execute(sa.select(tables.alias_moves).order_by(tables.alias_moves.c.id)).all()
        metrics = connection.execute(sa.select(tables.version_metrics)).all()
        parents = connection.execute(sa.select(tables.versions.c.parent_digest)).scalars().all()
        found = compare_metadata(MigrationContext.configure(connection), tables.metadata)
    catalog.close()
    one, two = ("sha256:" + 64 * letter for letter in "cd")
    assert [(move.previous_digest, move.digest, move.moved_at_us) for move in moves] == [
        ("", one, 7),
        (one, two, 7),
        (two, "", 7),
    ]
    assert [tuple(metric) for metric in metrics] == [(1, "exact_match", "eval", 0.75), (2, "exact_match", "eval", 0.75)]
    assert parents == ["sha256:" + 64 * "b"] * 2
    assert found == []


def test_a_database_of_something_else_is_left_alone(database: Path | str) -> None:
    url = f"sqlite:///{database}" if isinstance(database, Path) else database
    engine = sa.create_engine(sa.make_url(url.replace("postgresql:", "postgresql+psycopg:")))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE customers (id INTEGER)")
    with pytest.raises(PreconditionError, match="customers") as caught:
        Catalog(database)
    assert caught.value.reason == "NOT_A_CATALOG"
    assert sa.inspect(engine).get_table_names() == ["customers"]
    engine.dispose()


@pytest.mark.parametrize("statement", ["UPDATE audit SET actor = 'someone else'", "DELETE FROM audit"])
def test_the_audit_log_is_only_ever_added_to(database: Path | str, statement: str) -> None:
    catalog = Catalog(database)
    with catalog.write() as connection:
        audit.record(connection, "ada", "publish", "team", "team/support")

    def rewrite() -> None:
        with catalog.write() as connection:
            connection.exec_driver_sql(statement)

    with pytest.raises(sa.exc.DatabaseError, match="only ever added to"):
        rewrite()
    with catalog.read() as connection:
        assert connection.execute(sa.select(tables.audit.c.actor)).scalars().all() == ["ada"]
    catalog.close()
