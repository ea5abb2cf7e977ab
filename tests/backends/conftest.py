"""Fixtures of the tests that need real servers: `make test-backends` starts them and says where they are."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.backends.fresh import BUCKET, SERVER, fresh_database
from tests.backends.proxy import Proxy
from tests.backends.servers import Postgres

NONE = "no servers here: `make test-backends` starts them"


@pytest.fixture
def database() -> Iterator[str]:
    """The URL of an empty database."""
    if SERVER is None:
        pytest.skip(NONE)
    with fresh_database(SERVER) as url:
        yield url


@pytest.fixture
def place() -> str:
    """The URL of an empty place for blobs."""
    if BUCKET is None:
        pytest.skip(NONE)
    return f"{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def proxy(place: str) -> Iterator[Proxy]:
    """What stands between the S3 server and whoever is given its endpoint."""
    port = urlsplit(os.environ["AWS_ENDPOINT_URL"]).port
    assert port is not None
    proxy = Proxy(port)
    yield proxy
    proxy.close()


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL of the test's own, to be stopped and started."""
    if SERVER is None:
        pytest.skip(NONE)
    # Not in tmp_path: PostgreSQL may run as another user, who cannot look into it.
    with tempfile.TemporaryDirectory(prefix="weft-postgres-") as directory:
        Path(directory).chmod(0o755)
        server = Postgres(Path(directory) / "data")
        try:
            server.create()
            server.start()
            yield server
        finally:
            server.stop()
