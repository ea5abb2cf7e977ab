"""A catalog in PostgreSQL: what it takes for granted of the order of text, and every way to fail told in our words."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
import sqlalchemy as sa

from tests.backends.servers import PASSWORD, Postgres, free_ports
from weft_registry.catalog import records
from weft_registry.catalog import tables as t
from weft_registry.catalog.database import Catalog
from weft_registry.errors import (
    ExhaustedError,
    InvalidInputError,
    PreconditionError,
    UnavailableError,
    WeftError,
)


def add(catalog: Catalog, namespace: str, name: str) -> None:
    with catalog.write() as connection:
        connection.execute(t.adapters.insert().values(namespace=namespace, name=name, created_at_us=records.now_us()))


def test_names_are_in_the_order_of_their_bytes_whatever_the_databases_collation(database: str) -> None:
    """English order puts "_" before "-", and digits after both."""
    names = ["ab", "a-b", "a.b", "a_b", "a", "b", "abc", "ab0"]
    catalog = Catalog(database)
    for name in names:
        add(catalog, "team", name)
    with catalog.read() as connection:
        listed = [str(s.adapter) for s in records.page_adapters(connection, "", "", None)]
        bytewise = connection.execute(sa.text("SELECT 'a-b' < 'a_b'")).scalar_one()
        last, paged = "", []
        while page := records.page_adapters(connection, "", last, 2):
            last = str(page[-1].adapter)
            paged += [str(summary.adapter) for summary in page]
    catalog.close()
    if bytewise:
        pytest.skip("this PostgreSQL knows no order but that of bytes, so that this shows nothing")
    assert listed == paged == [f"team/{name}" for name in sorted(names)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda url: url.replace(PASSWORD, "wrong"), "password"),
        (lambda url: url.replace(f":{PASSWORD}", ""), "PGPASSWORD"),
        (lambda url: url + "_gone", "does not exist"),
        (lambda url: url.replace("weft:", "nobody:"), "role"),
        (lambda url: url.replace("127.0.0.1", "no-such-host.invalid"), "host"),
    ],
)
def test_what_only_an_operator_can_change_is_told_at_once_and_without_the_password(
    database: str, change: Callable[[str], str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGPASSWORD", raising=False)
    start = time.monotonic()
    with pytest.raises(PreconditionError, match=words) as caught:
        Catalog(change(database))
    assert caught.value.reason == "CATALOG_NOT_OPEN"
    assert PASSWORD not in str(caught.value)
    assert time.monotonic() - start < 10.0


def test_a_server_that_is_not_there_is_waited_for_and_named_without_the_password(database: str) -> None:
    port = free_ports(1)[0]
    where = sa.make_url(database).set(port=port).render_as_string(hide_password=False)
    start = time.monotonic()
    with pytest.raises(UnavailableError, match=f"127.0.0.1:{port}") as caught:
        Catalog(where, busy_timeout_s=1.0)
    assert 0.3 < time.monotonic() - start < 15.0
    assert caught.value.reason == "CATALOG_UNREACHABLE"
    assert caught.value.retry_after_s
    assert PASSWORD not in str(caught.value)


def test_a_server_that_takes_connections_and_says_nothing_is_given_up(database: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = sa.make_url(database).set(port=silent.getsockname()[1]).render_as_string(hide_password=False)
        start = time.monotonic()
        with pytest.raises(UnavailableError):
            Catalog(where, busy_timeout_s=1.0)
        assert time.monotonic() - start < 20.0


def test_the_url_may_say_how_to_connect_and_is_named_without_it(database: str) -> None:
    catalog = Catalog(f"{database}?sslmode=prefer&application_name=mine")
    assert "sslmode" not in catalog.where
    assert PASSWORD not in catalog.where
    assert catalog.dialect == "postgresql"
    catalog.close()


def test_sixteen_writers_lose_nothing_and_readers_wait_for_nobody(database: str) -> None:
    """Forty threads on sixteen connections; each adds one to what it has read."""
    catalogs = [Catalog(database) for _ in range(2)]
    counter = sa.select(t.settings.c.value).where(t.settings.c.key == "counter")
    with catalogs[0].write() as connection:
        connection.execute(t.settings.insert().values(key="counter", value="0"))

    def write(index: int) -> None:
        for _ in range(5):
            with catalogs[index % 2].write() as connection:
                value = int(connection.execute(counter).scalar_one())
                connection.execute(
                    t.settings.update().where(t.settings.c.key == "counter").values(value=str(value + 1))
                )

    def read(index: int) -> None:
        for _ in range(20):
            with catalogs[index % 2].read() as connection:
                first = connection.execute(counter).scalar_one()
                assert connection.execute(counter).scalar_one() == first

    with ThreadPoolExecutor(40) as pool:
        outcomes = [pool.submit(write, index) for index in range(16)] + [pool.submit(read, i) for i in range(24)]
        for outcome in outcomes:
            outcome.result(60)
    with catalogs[1].read() as connection:
        assert connection.execute(counter).scalar_one() == "80"
    for catalog in catalogs:
        catalog.close()


def test_readers_go_on_while_a_writer_of_another_process_holds_the_lock(database: str) -> None:
    catalog, other = Catalog(database, busy_timeout_s=0.5), Catalog(database)
    with other.write():

        def write() -> None:
            with pytest.raises(UnavailableError) as caught:
                add(catalog, "team", "late")
            assert caught.value.reason == "CATALOG_BUSY"

        with ThreadPoolExecutor(40) as pool:
            waiting = [pool.submit(write) for _ in range(30)]
            with catalog.read() as connection:
                assert connection.execute(sa.select(t.adapters)).all() == []
            for each in waiting:
                each.result(30)
    add(catalog, "team", "later")
    catalog.close()
    other.close()


def test_a_value_that_a_column_cannot_hold_is_the_callers_mistake(database: str) -> None:
    catalog = Catalog(database)
    for name in ("x" * 97, "zero\0byte"):
        with pytest.raises(InvalidInputError):
            add(catalog, "team", name)
    catalog.close()


def test_no_more_connections_is_waited_for_and_then_told(postgres: Postgres) -> None:
    held: list[psycopg.Connection] = []

    def hold_all() -> None:
        while len(held) < 200:
            held.append(psycopg.connect(postgres.url))

    with pytest.raises(psycopg.OperationalError):
        hold_all()
    with pytest.raises(ExhaustedError) as caught:
        Catalog(postgres.url, busy_timeout_s=0.5)
    assert (caught.value.reason, caught.value.retry_after_s) == ("CATALOG_FULL", 5.0)

    def leave() -> None:
        time.sleep(0.5)
        for connection in held:
            connection.close()

    thread = threading.Thread(target=leave)
    thread.start()
    Catalog(postgres.url, busy_timeout_s=20.0).close()
    thread.join()


def test_a_role_that_may_only_read_is_told_so(database: str) -> None:
    Catalog(database).close()
    role = f"reader_{os.urandom(4).hex()}"
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'reads'")
        connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    url = sa.make_url(database).set(username=role, password="reads").render_as_string(hide_password=False)
    catalog = Catalog(url)
    with catalog.read() as connection:
        assert records.page_adapters(connection, "", "", None) == []
    with pytest.raises(PreconditionError) as caught:
        add(catalog, "team", "x")
    assert caught.value.reason == "CATALOG_NOT_WRITABLE"
    catalog.close()
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(f"DROP OWNED BY {role}")
        connection.execute(f"DROP ROLE {role}")


def test_a_server_that_stops_in_the_middle_of_a_transaction_leaves_nothing_of_it(postgres: Postgres) -> None:
    catalog = Catalog(postgres.url, busy_timeout_s=20.0)
    add(catalog, "team", "before")

    def interrupted() -> None:
        with catalog.write() as connection:
            connection.execute(t.adapters.insert().values(namespace="team", name="half", created_at_us=1))
            postgres.restart()
            connection.execute(t.adapters.insert().values(namespace="team", name="rest", created_at_us=1))

    with pytest.raises(UnavailableError) as caught:
        interrupted()
    assert caught.value.reason == "CATALOG_UNREACHABLE"
    add(catalog, "team", "after")
    with catalog.read() as connection:
        names = connection.execute(sa.select(t.adapters.c.name).order_by(t.adapters.c.id)).scalars().all()
    assert names == ["before", "after"]

    def interrupted_at_the_commit() -> None:
        with catalog.write() as connection:
            connection.execute(t.adapters.insert().values(namespace="team", name="lost", created_at_us=1))
            postgres.restart()

    with pytest.raises(WeftError):
        interrupted_at_the_commit()
    with catalog.read() as connection:
        assert len(connection.execute(sa.select(t.adapters)).all()) == 2
    catalog.close()
