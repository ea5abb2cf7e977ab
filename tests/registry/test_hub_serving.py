"""`weft registry serve` as a process: both faces of one registry, bounded memory, and an end that is clean."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.backends.fresh import BUCKET
from tests.registry.hub_lab import ask, ndjson
from tests.registry.lab import ROOT
from weft_registry import digest as digests
from weft_registry import transfer
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.reference import AdapterName
from weft_registry.remote.registry import RemoteRegistry
from weft_registry.workspaces.commit import Commit, Put

NewArtifact = Callable[..., Path]
NAME = AdapterName("acme", "topics")
MIB = 1 << 20


@pytest.fixture
def process(home: Home) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "weft_client.cli", "registry", "serve", "--port", "0", "--http-port", "0"]
    process = subprocess.Popen(
        [*command, "--grace", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    yield process
    process.kill()
    process.communicate()


def addresses(process: subprocess.Popen[str]) -> tuple[str, str]:
    """HOST:PORT of gRPC, and of HTTP."""
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(2)]
    found = re.fullmatch(r"http on (127\.0\.0\.1:\d+)\nready on (127\.0\.0\.1:\d+)\n", "".join(lines))
    assert found is not None, lines
    return found[2], found[1]


def test_what_is_pushed_over_grpc_is_read_over_http(
    process: subprocess.Popen[str], new_artifact: NewArtifact, tmp_path: Path
) -> None:
    grpc_address, http_address = addresses(process)
    directory = new_artifact()
    remote = RemoteRegistry(grpc_address)
    try:
        commit = transfer.push(remote, directory, NAME, tags=["v1"]).version.digest[7:47]
    finally:
        remote.close()
    for path in directory.iterdir():
        reply = ask(http_address, f"/acme/topics/resolve/{commit}/{path.name}")
        assert (reply.status, reply.body) == (200, path.read_bytes()), path.name
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert re.fullmatch(r"catalog in .+\nblobs in .+\n", err), err


def test_memory_does_not_grow_with_the_file(
    registry: EmbeddedRegistry, process: subprocess.Popen[str], tmp_path: Path
) -> None:
    """Six whole downloads and six ranges at once, of a file far larger than what the server may take for them."""
    card = "0123456789abcde\n" * (16 * MIB if BUCKET else 8 * MIB)
    large = tmp_path / "large.txt"
    large.write_text(card)
    registry.workspaces.create_adapter(NAME)
    put = Put(large.name, digests.of_file(large), len(card), large)
    commit = registry.workspaces.commit(NAME, "main", Commit("", "", (put,), ())).commit
    _, address = addresses(process)
    path = f"/acme/topics/resolve/{commit}/large.txt"
    assert ask(address, path, "HEAD").status == 200
    assert ask(address, path, headers={"Range": "bytes=0-9"}).body == card[:10].encode()
    server = psutil.Process(process.pid)
    before = most = server.memory_info().rss
    host, _, port = address.rpartition(":")
    sizes: list[int] = []

    def read(extra: str) -> None:
        with socket.create_connection((host, int(port)), timeout=120) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{extra}\r\n".encode())
            size = 0
            while chunk := connection.recv(MIB):
                size += len(chunk)
            sizes.append(size)

    readers = [threading.Thread(target=read, args=(extra,)) for extra in ["", "Range: bytes=1-\r\n"] * 6]
    for reader in readers:
        reader.start()
    while any(reader.is_alive() for reader in readers):
        most = max(most, server.memory_info().rss)
    assert len(sizes) == 12
    assert min(sizes) > len(card) - 2
    # A few chunks of 1 MiB for each of the twelve; the client of a bucket reads some ten ahead.
    assert most - before < (192 * MIB if BUCKET else 96 * MIB) < len(card)


def test_memory_does_not_grow_with_a_commit(
    registry: EmbeddedRegistry, process: subprocess.Popen[str], tmp_path: Path
) -> None:
    """Two at once, each with a file far larger than what the server may take for them."""
    registry.workspaces.create_adapter(NAME)
    registry.workspaces.create_branch(NAME, "trial", "")
    _, address = addresses(process)
    path = "/api/models/acme/topics/commit/trial"
    kind = {"Content-Type": "application/x-ndjson"}
    assert ask(address, path, "POST", kind, ndjson(("small.txt", b"x"))).status == 200
    server = psutil.Process(process.pid)
    before = most = server.memory_info().rss
    host, _, port = address.rpartition(":")
    size = 96 * MIB
    statuses: list[bytes] = []

    def send(number: int) -> None:
        start, end = ndjson((f"large{number}.txt", b"")).split(b'"content": "')
        length = len(start) + len(end) + len(b'"content": "') + size // 3 * 4
        with socket.create_connection((host, int(port)), timeout=120) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n"
            connection.sendall(head.encode() + f"Content-Length: {length}\r\n\r\n".encode())
            connection.sendall(start + b'"content": "')
            for _ in range(size // (3 * MIB)):
                connection.sendall(bytes([65 + number]) * 4 * MIB)
            connection.sendall(end)
            statuses.append(connection.recv(100)[:12])

    senders = [threading.Thread(target=send, args=(number,)) for number in range(2)]
    for sender in senders:
        sender.start()
    while any(sender.is_alive() for sender in senders):
        most = max(most, server.memory_info().rss)
    assert statuses == [b"HTTP/1.1 200"] * 2
    workspace = registry.workspaces.find(NAME, "trial")
    assert workspace is not None
    assert [file.size_bytes for file in workspace.files] == [size, size, 1]
    # To a bucket, each goes in two parts of 8 MiB at once.
    assert most - before < (80 * MIB if BUCKET else 48 * MIB) < size


def test_a_taken_port_ends_it_with_one_line(process: subprocess.Popen[str], home: Home) -> None:
    _, http_address = addresses(process)
    taken = http_address.rpartition(":")[2]
    command = [sys.executable, "-m", "weft_client.cli", "registry", "serve", "--port", "0", "--http-port", taken]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)
    assert second.returncode == 1
    assert second.stdout == ""
    assert second.stderr.startswith(f"error: cannot listen on {http_address} for HTTP")
