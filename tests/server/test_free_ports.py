"""A port that is taken is found before the engine is built, in the words of who would have listened there."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.tiny_models import AddedBase
from weft_registry.errors import InvalidInputError, UnavailableError
from weft_server import serving
from weft_server.free_ports import check_ports
from weft_server.options import ServeOptions

WORDS = {
    "port": r"cannot listen on {}: is another server there, or .* no address of this machine\? `--port 0` picks",
    "http_port": r"cannot listen on {} for HTTP: is another server there\? `--http-port 0` picks",
    "metrics_port": r"cannot listen on {} for metrics: is another server there\? `--metrics-port 0` picks",
}


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.mark.parametrize("option", WORDS)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_taken_port_is_named_with_the_way_out(option: str, host: str, taken: int) -> None:
    if host == "localhost" and {a[4][0] for a in socket.getaddrinfo(host, 0)} != {"127.0.0.1"}:
        pytest.skip("this machine's localhost has other addresses, which are free")
    options = replace(ServeOptions("b", port=0), host=host, **{option: taken})
    with pytest.raises(UnavailableError, match=WORDS[option].format(rf"{host}:{taken}")) as caught:
        check_ports(options)
    assert caught.value.reason == "CANNOT_LISTEN"


def test_what_is_free_is_let_through_and_left_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    check_ports(ServeOptions("b", port=port, http_port=0, metrics_port=0))
    socket.create_server(("127.0.0.1", port)).close()
    check_ports(ServeOptions("b", port=0))


def test_a_port_whose_last_connection_is_closing_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = listening.accept()
            # The side that closes first is the one that waits.
            accepted.close()
    check_ports(ServeOptions("b", port=port))


def test_a_host_that_is_not_here_is_refused() -> None:
    with pytest.raises(UnavailableError, match=r"192\.0\.2\.7:0.*192\.0\.2\.7 no address of this machine"):
        check_ports(ServeOptions("b", port=0, host="192.0.2.7"))


def test_one_port_for_two_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="--port and --metrics-port are both 50999: give one of them another"):
        check_ports(ServeOptions("b", port=50999, metrics_port=50999))


@pytest.mark.parametrize("option", WORDS)
async def test_a_server_finds_it_before_it_builds_its_engine(
    option: str,
    taken: int,
    tiny_base: Callable[..., AddedBase],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = tiny_base()
    built: list[object] = []
    monkeypatch.setattr(serving, "engine_builder", lambda name: lambda *given: built.append(given))
    options = ServeOptions(base.name, home=base.home, **{"port": 0, option: taken})
    with pytest.raises(UnavailableError, match="cannot listen on"):
        async with serving.running(options):
            pass
    assert not built
