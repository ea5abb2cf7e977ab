"""The writing side of the Hub face as plain HTTP: what is slow, too large, lying or malformed leaves nothing behind."""

from __future__ import annotations

import gzip
import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.registry.hub_lab import Reply, ask, ask_json, ndjson
from tests.registry.lab import add_base
from weft_registry import artifact
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import UnauthenticatedError
from weft_registry.home import Home
from weft_registry.hub import writing
from weft_registry.hub.bodies import BodyLimits
from weft_registry.hub.commits import CommitLimits
from weft_registry.hub.lfs import PERMIT_S, Permit, Permits
from weft_registry.hub.port import HubPort
from weft_registry.principal import Principal, Scope
from weft_registry.reference import AdapterName

NewArtifact = Callable[..., Path]
NAME = AdapterName("acme", "topics")
COMMIT = "/api/models/acme/topics/commit/main"
NDJSON = {"Content-Type": "application/x-ndjson"}
DATA = b"0123456789" * 1000
OID = hashlib.sha256(DATA).hexdigest()


@contextmanager
def hub(registry: EmbeddedRegistry, **options: Any) -> Iterator[str]:
    port = HubPort(registry, "127.0.0.1", 0, grace_s=0, **options)
    try:
        yield port.address
    finally:
        port.close()


@pytest.fixture
def address(registry: EmbeddedRegistry, home: Home) -> Iterator[str]:
    add_base(home)
    registry.workspaces.create_adapter(NAME)
    with hub(registry) as found:
        yield found


def send(address: str, body: bytes, path: str = COMMIT, **headers: str) -> Reply:
    return ask(address, path, "POST", {**NDJSON, **headers}, body)


def nothing_is_left(registry: EmbeddedRegistry) -> None:
    assert registry.list_versions(NAME) == []
    found = registry.workspaces.find(NAME, "main")
    assert found is not None
    assert found.files == ()
    if registry.scratch.exists():
        while list(registry.scratch.iterdir()):  # A connection that was cut is noticed a moment later.
            time.sleep(0.01)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/json"}, 415),
        ({"Content-Type": ""}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Encoding": "gzip"}, 415),
        ({"Content-Encoding": "zstd, identity"}, 415),
        ({"Content-Encoding": "identity", "Content-Type": "application/x-ndjson; charset=utf-8"}, 200),
    ],
)
def test_a_body_is_what_it_says(registry: EmbeddedRegistry, address: str, headers: dict[str, str], status: int) -> None:
    body = ndjson(("README.md", b"A card.\n"))
    body = gzip.compress(body) if status != 200 and "gzip" in headers.values() else body
    assert send(address, body, **headers).status == status
    if status != 200:
        nothing_is_left(registry)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_drips_is_not_waited_for(registry: EmbeddedRegistry, home: Home, chunked: bool) -> None:
    """Single bytes do not keep it open, and neither does a body in chunks that never ends."""
    registry.workspaces.create_adapter(NAME)
    with hub(registry, body_limits=BodyLimits(first_s=0.3, least_bytes_per_s=1e6)) as address:
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            length = "Transfer-Encoding: chunked" if chunked else "Content-Length: 1000000"
            head = f"POST {COMMIT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n{length}\r\n\r\n"
            connection.sendall(head.encode())
            stop = threading.Event()

            def drip() -> None:
                while not stop.wait(0.02):
                    try:
                        connection.sendall(b"1\r\n{\r\n" if chunked else b"{")
                    except OSError:
                        return

            dripping = threading.Thread(target=drip)
            dripping.start()
            received = b""
            with suppress(ConnectionResetError):
                while data := connection.recv(65536):
                    received += data
            stop.set()
            dripping.join()
        assert received.startswith(b"HTTP/1.1 408")
        assert b"connection: close" in received.lower()
        nothing_is_left(registry)
        assert send(address, ndjson(("README.md", b"A card.\n"))).status == 200


def test_a_client_that_goes_away_leaves_nothing(registry: EmbeddedRegistry, address: str) -> None:
    """Once more often than uploads are received at a time: each place is free again."""
    host, _, port = address.rpartition(":")
    body = ndjson(("README.md", b"x" * 300_000))
    for _ in range(writing.MAX_RECEIVING + 1):
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            head = f"POST {COMMIT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n"
            connection.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body[:200_000])
    nothing_is_left(registry)
    deadline = time.monotonic() + 30
    while (reply := send(address, body)).status == 503 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert reply.status == 200


def test_more_uploads_than_are_received_at_once_are_told_to_come_back(
    registry: EmbeddedRegistry, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, _, port = address.rpartition(":")
    held = []
    for _ in range(writing.MAX_RECEIVING):
        connection = socket.create_connection((host, int(port)), timeout=30)
        head = f"POST {COMMIT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n"
        # It says that it may send as soon as its place is taken.
        connection.sendall(head.encode() + b"Content-Length: 100000\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        held.append(connection)
    reply = send(address, ndjson(("README.md", b"A card.\n")))
    assert (reply.status, reply.headers["retry-after"]) == (503, "5")
    for connection in held:
        connection.close()


def test_what_is_too_large_is_refused(registry: EmbeddedRegistry, home: Home) -> None:
    registry.workspaces.create_adapter(NAME)
    limits = CommitLimits(max_body_bytes=100_000, max_file_bytes=50_000, max_operations=10)
    with hub(registry, commit_limits=limits) as address:
        assert send(address, ndjson(("a.txt", b"x" * 40_000), ("b.txt", b"y" * 40_000))).status == 413
        reply = send(address, ndjson(("a.txt", b"x" * 50_001)))
        assert (reply.status, "more than 50000 bytes" in reply.headers["x-error-message"]) == (400, True)
        assert send(address, ndjson(*[(f"a{n}.txt", b"x") for n in range(11)])).status == 400
        files = {"files": [{"path": "a.txt", "size": 50_001, "sample": ""}]}
        assert ask_json(address, "/api/models/acme/topics/preupload/main", files).status == 413
        big = {"content": "x" * (5 << 20)}
        assert ask_json(address, "/api/validate-yaml", big).status == 413
        assert ask_json(address, "/api/repos/create", big).status == 413
        nothing_is_left(registry)


def test_a_refusal_is_read_although_the_body_was_not_needed(registry: EmbeddedRegistry, address: str) -> None:
    """A client reads the answer when it has sent all: what is wrong in the first line comes through after megabytes."""
    body = b"nonsense\n" + ndjson(("README.md", b"x" * (8 << 20)))
    for _ in range(3):
        reply = send(address, body)
        assert (reply.status, "line 1" in reply.headers["x-error-message"]) == (400, True)
    assert send(address, body, path="/api/models/acme/none/commit/main").status == 404
    nothing_is_left(registry)


def test_broken_chunks_are_refused(registry: EmbeddedRegistry, address: str) -> None:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = f"POST {COMMIT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n"
        connection.sendall(head.encode() + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400")
    nothing_is_left(registry)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/models/acme/../commit/main", 400),
        ("/api/models/acme/topics/commit/..%2f..%2fmain", 400),
        ("/api/models/acme/topics/commit/%2e%2e", 400),
        ("/api/models/acme/topics/commit/ma%00in", 400),
        ("/api/models/acme/topics/commit/refs%2Fpr%2F1", 400),
        ("/api/models/acme/topics/commit/nothing", 404),
        ("/api/models/acme/topics/commit/" + "0" * 40, 404),
        ("/api/models/Acme/Topics/commit/main", 404),
        ("/api/models/acme/none/commit/main", 404),
        ("/api/datasets/acme/topics/commit/main", 404),
        ("/api/models/acme/topics/commit/main?create_pr=1", 501),
        ("/api/models/acme/topics/commit/main?nonsense=1", 501),
    ],
)
def test_only_branches_are_committed_to(registry: EmbeddedRegistry, address: str, path: str, status: int) -> None:
    reply = send(address, ndjson(("README.md", b"A card.\n")), path=path)
    assert reply.status == status
    assert json.loads(reply.body)["error"]
    nothing_is_left(registry)


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("/api/repos/create", []),
        ("/api/repos/create", {}),
        ("/api/repos/create", {"name": 1}),
        ("/api/repos/create", {"name": "a", "organization": ["b"]}),
        ("/api/repos/create", {"name": "../a", "organization": "b"}),
        ("/api/models/acme/topics/preupload/main", {}),
        ("/api/models/acme/topics/preupload/main", {"files": [1]}),
        ("/api/models/acme/topics/preupload/main", {"files": [{"path": 1}]}),
        ("/api/models/acme/topics/preupload/main", {"files": [{"path": "../x"}]}),
        ("/api/models/acme/topics/branch/x", {"startingPoint": 1}),
        ("/api/models/acme/topics/branch/a%20b", {}),
        ("/api/models/acme/topics/tag/main", {}),
        ("/api/models/acme/topics/tag/main", {"tag": 1}),
        ("/api/models/acme/topics/tag/main", {"tag": "main"}),
        ("/api/validate-yaml", {"content": 1}),
        ("/acme/topics.git/info/lfs/objects/batch", {"operation": "upload", "objects": [{"oid": "x", "size": 1}]}),
        ("/acme/topics.git/info/lfs/objects/batch", {"operation": "upload", "objects": [{"oid": OID, "size": -1}]}),
        ("/acme/topics.git/info/lfs/objects/batch", {"operation": "upload", "objects": {}}),
    ],
)
def test_documents_that_mean_nothing_are_refused(
    registry: EmbeddedRegistry, address: str, path: str, document: object
) -> None:
    assert ask_json(address, path, document).status == 400
    nothing_is_left(registry)


def test_a_commit_that_is_refused_changes_nothing(
    registry: EmbeddedRegistry, address: str, new_artifact: NewArtifact
) -> None:
    """Not even the files before the one that is wrong."""
    directory = new_artifact()
    good = [(path.name, path.read_bytes()) for path in sorted(directory.iterdir())]
    weights = dict(good)[artifact.WEIGHTS]
    for bad in (
        [*good, ("evil.py", b"x")],
        [*good, ("deletedFile", {"path": "nothing.txt"})],
        [*good[:-1], (artifact.WEIGHTS, weights[:-1])],
        [*[file for file in good if file[0] != artifact.MANIFEST][:-1], (artifact.WEIGHTS, weights[:-1])],
        [*good, ("lfsFile", {"path": "notes.txt", "oid": "00" * 32, "size": 5})],
        [*good, ("lfsFile", {"path": "notes.txt", "oid": hashlib.sha256(weights).hexdigest(), "size": 5})],
    ):
        reply = send(address, ndjson(*bad))
        if reply.status == 200:  # What the manifest does not list is not whole, and waits.
            assert "not there as" in reply.headers["x-hf-warning"]
            assert ask(address, "/api/models/acme/topics/branch/main", "DELETE").status == 200
        nothing_is_left(registry)
    assert send(address, ndjson(*good)).status == 200
    assert len(registry.list_versions(NAME)) == 1


def batch(address: str, oid: str = OID, size: int = len(DATA), repo: str = "acme/topics") -> dict[str, Any]:
    said = {
        "operation": "upload",
        "transfers": ["basic"],
        "objects": [{"oid": oid, "size": size}],
        "hash_algo": "sha256",
    }
    kind = {"Content-Type": "application/vnd.git-lfs+json", "Accept": "application/vnd.git-lfs+json"}
    reply = ask_json(address, f"/{repo}.git/info/lfs/objects/batch", said, headers=kind)
    assert reply.status == 200, reply
    (entry,) = json.loads(reply.body)["objects"]
    return entry  # type: ignore[no-any-return]


def put(address: str, href: str, data: bytes = DATA) -> Reply:
    assert href.startswith(f"http://{address}/")
    return ask(address, href.removeprefix(f"http://{address}"), "PUT", body=data)


def test_an_object_is_sent_by_lfs_and_committed(registry: EmbeddedRegistry, address: str) -> None:
    actions = batch(address)["actions"]
    assert put(address, actions["upload"]["href"]).status == 200
    verify = actions["verify"]["href"].removeprefix(f"http://{address}")
    assert ask_json(address, verify, {"oid": OID, "size": len(DATA)}).status == 200
    assert "actions" not in batch(address)
    said = {"path": "notes.txt", "algo": "sha256", "oid": OID, "size": len(DATA)}
    assert send(address, ndjson(("lfsFile", said))).status == 200
    found = registry.workspaces.find(NAME, "main")
    assert found is not None
    assert [(file.path, file.sha256, file.size_bytes) for file in found.files] == [
        ("notes.txt", f"sha256:{OID}", len(DATA))
    ]


def test_an_object_that_is_not_what_it_says_is_not_stored(registry: EmbeddedRegistry, address: str) -> None:
    href = batch(address)["actions"]["upload"]["href"]
    for data in (DATA[:-1], DATA + b"x", b"x" * len(DATA), b""):
        assert put(address, href, data).status == 400
    assert put(address, href, DATA).status == 200
    # The size is part of what was promised.
    other = hashlib.sha256(b"other").hexdigest()
    assert put(address, batch(address, other, 3)["actions"]["upload"]["href"], b"other").status == 400
    said = {"path": "notes.txt", "algo": "sha256", "oid": OID, "size": len(DATA) - 1}
    assert send(address, ndjson(("lfsFile", said))).status == 404
    assert ask_json(address, "/acme/topics.git/info/lfs/verify", {"oid": other, "size": 5}).status != 200
    nothing_is_left(registry)


def test_an_address_is_a_permission_for_one_object(registry: EmbeddedRegistry, address: str) -> None:
    registry.workspaces.create_adapter(AdapterName("acme", "other"))
    href = batch(address)["actions"]["upload"]["href"]
    other = hashlib.sha256(b"other").hexdigest()
    word = href.partition("permit=")[2]
    for forged in (
        href.replace(OID, other),
        href.replace("acme/topics", "acme/other"),
        href.partition("?")[0],
        href[:-2] + ("AA" if href[-2:] != "AA" else "BB"),
        href.replace(word, "x"),
        href.replace(word, "e30." + word.partition(".")[2]),
    ):
        reply = put(address, forged)
        assert (reply.status, reply.headers["www-authenticate"]) == (401, 'Bearer realm="weft"'), forged
    nothing_is_left(registry)


def test_a_permission_ends() -> None:
    now = [1000.0]
    permits = Permits(lambda: now[0])
    principal = Principal("ci", frozenset({Scope.PUBLISH}), frozenset({"acme"}))
    permit = Permit(NAME, OID, 5, principal)
    word = permits.sign(permit)
    assert permits.read(word, NAME, OID) == permit
    now[0] += PERMIT_S + 1
    with pytest.raises(UnauthenticatedError):
        permits.read(word, NAME, OID)
    with pytest.raises(UnauthenticatedError):
        Permits(lambda: 1000.0).read(word, NAME, OID)


def test_paths_info_takes_forms_and_documents(registry: EmbeddedRegistry, address: str) -> None:
    assert send(address, ndjson(("README.md", b"A card.\n"), ("notes.txt", b"Notes.\n"))).status == 200
    path = "/api/models/acme/topics/paths-info/main"
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for reply in (
        ask(address, path, "POST", form, b"paths=README.md&paths=none&expand=False"),
        ask_json(address, path, {"paths": ["README.md", "none"], "expand": False}),
    ):
        assert [entry["path"] for entry in json.loads(reply.body)] == ["README.md"]
    assert ask(address, path, "POST", form, b"a=1&" * 2000).status == 400
    assert ask(address, path, "POST", {"Content-Type": "text/plain"}, b"x").status == 415
