"""`weft serve --http-port`: the embedded registry as a Hugging Face Hub beside the inference server."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.subjects import random_adapter
from tests.registry.hub_lab import ask
from tests.server.homes import prepare
from tests.tiny_models import AddedBase
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import InvalidInputError, UnavailableError
from weft_registry.home import Home
from weft_registry.reference import AdapterName
from weft_registry.transfer import push
from weft_server.options import ServeOptions
from weft_server.serving import running


@pytest.fixture
def options(tiny_base: Callable[..., AddedBase], tmp_path: Path) -> ServeOptions:
    base, home = tiny_base(), Home(tmp_path / "home")
    prepare(home, base)
    return ServeOptions(base.name, port=0, http_port=0, dtype="float32", copies="never", grace_s=0, home=home)


async def test_a_server_shows_its_registry_and_stops_with_it(
    options: ServeOptions, tiny_base: Callable[..., AddedBase], tmp_path: Path
) -> None:
    spec = tiny_base().stored.spec
    random_adapter("lora", spec, 1, strength=0.3).write(tmp_path / "made", spec, "acme/made")
    registry = EmbeddedRegistry(options.home)
    commit = push(registry, tmp_path / "made", AdapterName("acme", "made")).version.digest[7:47]
    registry.close()
    async with running(options) as server:
        assert server.http_address is not None
        for path in (tmp_path / "made").iterdir():
            reply = ask(server.http_address, f"/acme/made/resolve/{commit}/{path.name}")
            assert (reply.status, reply.body) == (200, path.read_bytes()), path.name
        with pytest.raises(UnavailableError, match="--http-port 0"):
            async with running(replace(options, http_port=int(server.http_address.rpartition(":")[2]))):
                pytest.fail("two servers on one port")
    with pytest.raises(ConnectionRefusedError):
        ask(server.http_address, "/api/models")


async def test_a_registry_elsewhere_is_not_shown(options: ServeOptions) -> None:
    with pytest.raises(InvalidInputError, match="weft registry serve"):
        async with running(replace(options, registry="127.0.0.1:1")):
            pytest.fail("it started")
