"""The Hub face as plain HTTP: ranges, redirects, pins, what is refused, and limits on time and memory."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.registry.hub_lab import Reply, ask
from weft_registry import artifact, transfer
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import NotFoundError, OffsetError, UnavailableError
from weft_registry.hub import pins as pins_module
from weft_registry.hub.files import Span, parse_range
from weft_registry.hub.pins import PinKey, Pins, session_of
from weft_registry.hub.port import MAX_HEADER_BYTES, HubPort
from weft_registry.hub.routes import route
from weft_registry.reference import AdapterName

NewArtifact = Callable[..., Path]
NAME = AdapterName("acme", "topics")
CARD = "".join(f"line {number}\n" for number in range(300_000))
SESSION = {"User-Agent": "hf_hub/2.4.0; transformers/5.0; session_id/0123456789abcdef0123456789abcdef; torch/2"}


@pytest.fixture
def port(registry: EmbeddedRegistry) -> Iterator[HubPort]:
    port = HubPort(registry, "127.0.0.1", 0, grace_s=0)
    yield port
    port.close()


@pytest.fixture
def file(registry: EmbeddedRegistry, port: HubPort, new_artifact: NewArtifact) -> str:
    """The path of a file of some megabytes, by commit id."""
    version = transfer.push(registry, new_artifact(seed=1, notes=CARD), NAME, tags=["v1"]).version
    return f"/acme/topics/resolve/{version.digest[7:47]}/notes.txt"


def raw(port: HubPort, data: bytes, timeout_s: float = 30.0) -> bytes:
    """Everything that comes back for these bytes, until the server closes."""
    host, _, number = port.address.rpartition(":")
    with socket.create_connection((host, int(number)), timeout=timeout_s) as connection:
        connection.sendall(data)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    return received


def test_head_says_all_about_a_file_and_sends_nothing_of_it(port: HubPort, file: str) -> None:
    sha256 = hashlib.sha256(CARD.encode()).hexdigest()
    reply = ask(port.address, file, "HEAD")
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers["content-length"] == reply.headers["x-linked-size"] == str(len(CARD))
    assert reply.headers["etag"] == reply.headers["x-linked-etag"] == f'"{sha256}"'
    assert reply.headers["x-repo-commit"] == file.split("/")[4]
    assert reply.headers["accept-ranges"] == "bytes"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert "x-xet-hash" not in reply.headers


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=10-19", 10, 19),
        ("bytes=1048570-2097160", 1048570, 2097160),
        ("bytes=3000000-", 3000000, len(CARD) - 1),
        ("bytes=-5", len(CARD) - 5, len(CARD) - 1),
        (f"bytes=-{len(CARD) * 2}", 0, len(CARD) - 1),
        (f"bytes=100-{len(CARD) * 2}", 100, len(CARD) - 1),
    ],
)
def test_a_range_is_exactly_these_bytes(port: HubPort, file: str, asked: str, first: int, last: int) -> None:
    reply = ask(port.address, file, headers={"Range": asked})
    assert reply.status == 206
    assert reply.headers["content-range"] == f"bytes {first}-{last}/{len(CARD)}"
    assert reply.headers["content-length"] == str(last - first + 1)
    assert reply.body == CARD.encode()[first : last + 1]


def test_a_range_past_the_end_is_refused_with_the_size(port: HubPort, file: str) -> None:
    for asked in (f"bytes={len(CARD)}-", "bytes=-0"):
        reply = ask(port.address, file, headers={"Range": asked})
        assert reply.status == 416
        assert reply.headers["content-range"] == f"bytes */{len(CARD)}"


def test_ranges_that_may_be_ignored_get_the_whole(port: HubPort, file: str) -> None:
    etag = ask(port.address, file, "HEAD").headers["etag"]
    for asked in ("bytes=5-1", "bytes=0-1,3-4", "lines=1-2", "bytes=-", "bytes=a-b"):
        reply = ask(port.address, file, headers={"Range": asked})
        assert (reply.status, len(reply.body)) == (200, len(CARD)), asked
    assert ask(port.address, file, headers={"Range": "bytes=1-2", "If-Range": '"other"'}).status == 200
    assert ask(port.address, file, headers={"Range": "bytes=1-2", "If-Range": etag}).body == CARD.encode()[1:3]


def test_ranges_of_the_manifest_which_is_no_blob(registry: EmbeddedRegistry, port: HubPort, file: str) -> None:
    manifest = registry.resolve("acme/topics").manifest_bytes
    path = file.replace("notes.txt", artifact.MANIFEST)
    assert ask(port.address, path).body == manifest
    assert ask(port.address, path, headers={"Range": "bytes=7-20"}).body == manifest[7:21]


def test_parse_range_by_itself() -> None:
    assert parse_range("bytes=2-", 5) == Span(2, 3)
    assert parse_range("Bytes = 0 - 1", 5) == Span(0, 2)
    with pytest.raises(OffsetError):
        parse_range("bytes=0-", 0)


def test_tags_and_aliases_lead_to_the_commit_and_nothing_else_does(
    registry: EmbeddedRegistry, port: HubPort, file: str
) -> None:
    digest = registry.resolve("acme/topics:v1").digest
    for revision in ("v1", "latest", "main", digest.replace(":", "%3A"), digest[7:]):
        for method in ("HEAD", "GET"):
            reply = ask(port.address, f"/acme/topics/resolve/{revision}/notes.txt", method)
            assert (reply.status, reply.headers["location"], reply.body) == (307, file, b"")
            assert reply.headers["x-repo-commit"] == digest[7:47]
    assert ask(port.address, f"/acme/topics/resolve/{digest[7:46]}/README.md").status == 404


def test_a_tag_that_looks_like_a_commit_does_not_take_its_place(
    registry: EmbeddedRegistry, port: HubPort, file: str, new_artifact: NewArtifact
) -> None:
    commit = file.split("/")[4]
    transfer.push(registry, new_artifact(seed=2), NAME, tags=[commit, "a" * 40])
    assert ask(port.address, file).body == CARD.encode()
    # A tag of this form that is no commit is still a tag.
    assert ask(port.address, f"/acme/topics/resolve/{'a' * 40}/README.md").status == 307


def two_versions(registry: EmbeddedRegistry, new_artifact: NewArtifact) -> tuple[str, str]:
    first = transfer.push(registry, new_artifact(seed=1), NAME, tags=["v1"], aliases=["production"]).version
    second = transfer.push(registry, new_artifact(seed=2), NAME, tags=["v2"]).version
    return first.digest[7:47], second.digest[7:47]


def test_a_load_gets_weights_of_the_version_that_its_configuration_came_from(
    registry: EmbeddedRegistry, port: HubPort, new_artifact: NewArtifact
) -> None:
    first, second = two_versions(registry, new_artifact)

    def commit(name: str, session: dict[str, str]) -> str:
        reply = ask(port.address, f"/acme/topics/resolve/production/{name}", "HEAD", session)
        return reply.headers["x-repo-commit"]

    other = {"User-Agent": SESSION["User-Agent"].replace("0123", "4567")}
    assert commit(artifact.CONFIG, SESSION) == first
    registry.set_alias(NAME, "production", "v2")
    assert commit(artifact.WEIGHTS, SESSION) == first
    assert commit(artifact.WEIGHTS, other) == second
    assert commit(artifact.WEIGHTS, {}) == second
    # The next load begins with its configuration, and is not held to the last one.
    assert commit(artifact.CONFIG, SESSION) == second
    assert commit(artifact.WEIGHTS, SESSION) == second


def test_pins_end_and_are_bounded() -> None:
    now = [0.0]
    pins = Pins(lambda: now[0])
    keys = [PinKey(f"session{number}", NAME, "production") for number in range(pins_module.MAX_PINS + 1)]
    for key in keys:
        pins.pin(key, "sha256:x")
    assert pins.get(keys[0]) is None
    assert pins.get(keys[1]) == "sha256:x"
    now[0] = pins_module.PIN_S
    assert pins.get(keys[1]) is None


def test_a_session_is_what_transformers_names() -> None:
    assert session_of(SESSION["User-Agent"]) == "0123456789abcdef0123456789abcdef"
    assert session_of("hf_hub/2.4.0; python/3.11") is None
    assert session_of("x_session_id/0123456789abcdef") is None


@pytest.mark.parametrize(
    "path",
    [
        "/acme/topics/resolve/main/../../../etc/passwd",
        "/acme/topics/resolve/main/%2e%2e/%2e%2e/catalog.db",
        "/acme/topics/resolve/main/..%2f..%2fcatalog.db",
        "/acme/topics/resolve/main/..%5c..%5ccatalog.db",
        "/acme/topics/resolve/main/README.md%00.json",
        "/acme/topics/resolve/main/README.md%0d%0aX-Evil:%201",
        "/acme/topics/resolve/main/%ff",
        "/acme/topics/resolve/..%2fv1/README.md",
        "/acme//resolve/main/README.md",
        "/api/models/../models/acme/topics",
        "/" + "a" * 3000,
    ],
)
def test_paths_that_lead_out_are_refused(port: HubPort, file: str, path: str) -> None:
    for method in ("GET", "HEAD"):
        reply = ask(port.address, path, method)
        assert reply.status == 400
        assert "x-evil" not in reply.headers


@pytest.mark.parametrize(
    "path",
    [
        "/acme/topics/resolve/main//etc/passwd",
        "/acme/topics/resolve/main/blobs/sha256/ab",
        "/acme/topics/resolve/main/readme.md",
        "/acme/topics/resolve/main/README.md/x",
        "/acme/topics/resolve/main",
        "/acme/topics",
        "/",
        "/api",
        "/api/models/acme/topics/xet-read-token/main",
    ],
)
def test_only_files_of_the_version_are_there(port: HubPort, file: str, path: str) -> None:
    reply = ask(port.address, path)
    assert reply.status in (400, 404)
    assert json.loads(reply.body) == {"error": reply.headers["x-error-message"]}


def test_every_error_says_its_kind(port: HubPort, file: str) -> None:
    def code(path: str) -> tuple[int, str | None]:
        reply = ask(port.address, path)
        return reply.status, reply.headers.get("x-error-code")

    assert code("/acme/none/resolve/main/README.md") == (404, "RepoNotFound")
    assert code("/api/models/acme/none") == (404, "RepoNotFound")
    assert code("/api/models/acme/topics/revision/none") == (404, "RevisionNotFound")
    assert code("/api/models/acme/topics/tree/none") == (404, "RevisionNotFound")
    assert code("/acme/topics/resolve/none/README.md") == (404, "RevisionNotFound")
    assert code("/acme/topics/resolve/main/none") == (404, "EntryNotFound")
    assert code("/api/nothing") == (404, None)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"])
def test_a_page_answers_its_own_methods_alone(port: HubPort, file: str, method: str) -> None:
    reply = ask(port.address, file, method)
    assert (reply.status, reply.headers["connection"]) == (405, "close")
    for path, allowed in (("/api/models/acme/topics/commit/main", "POST"), ("/api/repos/delete", "DELETE")):
        if method != allowed:
            reply = ask(port.address, path, method)
            known = allowed if method in ("POST", "PUT", "DELETE") else "GET, HEAD, POST, PUT, DELETE"
            assert (reply.status, reply.headers["allow"]) == (405, known)


def test_a_body_is_refused_before_it_has_arrived(port: HubPort, file: str) -> None:
    """And the connection is closed: nobody waits for the rest."""
    for method, status in ((b"GET", b"413"), (b"POST", b"405")):
        for length in (b"Content-Length: 1000000000", b"Transfer-Encoding: chunked"):
            head = method + b" " + file.encode() + b" HTTP/1.1\r\nHost: x\r\n" + length + b"\r\n\r\n"
            assert raw(port, head).startswith(b"HTTP/1.1 " + status)


def test_oversized_headers_are_refused(port: HubPort, file: str) -> None:
    head = b"GET / HTTP/1.1\r\nHost: x\r\nX-Big: " + b"a" * (2 * MAX_HEADER_BYTES)
    assert raw(port, head).startswith(b"HTTP/1.1 400")
    assert ask(port.address, file, "HEAD").status == 200


@pytest.mark.parametrize("start", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /"])
def test_a_request_that_does_not_arrive_is_dropped(registry: EmbeddedRegistry, start: bytes) -> None:
    """The first of a connection, and the next one. Single bytes keep nothing open: the time is of the whole request."""
    port = HubPort(registry, "127.0.0.1", 0, grace_s=0, request_timeout_s=0.3)
    try:
        host, _, number = port.address.rpartition(":")
        with socket.create_connection((host, int(number)), timeout=30) as connection:
            connection.sendall(start)
            stop = threading.Event()

            def drip() -> None:
                while not stop.wait(0.05):
                    try:
                        connection.sendall(b"a")
                    except OSError:
                        return

            if start:
                threading.Thread(target=drip, daemon=True).start()
            with suppress(ConnectionResetError):
                while connection.recv(65536):
                    pass
            stop.set()
    finally:
        port.close()


def test_a_client_that_takes_nothing_is_dropped(registry: EmbeddedRegistry, new_artifact: NewArtifact) -> None:
    version = transfer.push(registry, new_artifact(notes=CARD * 8), NAME).version
    port = HubPort(registry, "127.0.0.1", 0, grace_s=0, stall_timeout_s=0.3)
    try:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            host, _, number = port.address.rpartition(":")
            connection.connect((host, int(number)))
            connection.settimeout(30)
            path = f"/acme/topics/resolve/{version.digest[7:47]}/notes.txt"
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            received = len(connection.recv(1))
            while port.connection_count:
                time.sleep(0.01)
            with suppress(ConnectionResetError):
                while chunk := connection.recv(1 << 20):
                    received += len(chunk)
            # The rest is what lay between the two ends.
            assert received < len(CARD) * 8
    finally:
        port.close()


def test_several_requests_on_one_connection(port: HubPort, file: str) -> None:
    request = f"HEAD {file} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    last = f"HEAD {file} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    assert raw(port, request * 3 + last).count(b"HTTP/1.1 200") == 4


def test_next_pages_are_where_the_client_is(
    registry: EmbeddedRegistry, port: HubPort, new_artifact: NewArtifact
) -> None:
    for number in range(3):
        transfer.push(registry, new_artifact(seed=number), AdapterName("acme", f"a{number}"))
    seen: list[str] = []
    path = "/api/models?limit=1"
    while True:
        reply: Reply = ask(port.address, path, headers={"Host": "registry.example:8080"})
        seen += [model["id"] for model in json.loads(reply.body)]
        if "link" not in reply.headers:
            break
        assert reply.headers["link"].startswith("<http://registry.example:8080/api/models?")
        path = reply.headers["link"].removeprefix("<http://registry.example:8080").partition(">")[0]
    assert seen == ["acme/a0", "acme/a1", "acme/a2"]
    evil = ask(port.address, "/api/models?limit=1", headers={"Host": 'x>; rel="prev", <http://evil'})
    assert evil.headers["link"].startswith(f"<http://{port.address}/api/models?")


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "cursor=..", "nonsense=1", "limit=1&limit=2", "a=" * 3000])
def test_queries_that_mean_nothing_are_refused(port: HubPort, file: str, query: str) -> None:
    assert ask(port.address, f"/api/models?{query}").status == 400


def test_a_revision_arrives_as_one_segment() -> None:
    found = route(b"/acme/topics/resolve/refs%2Fpr%2F1/README.md")
    assert (found.page, found.repo, found.revision, found.path) == ("file", "acme/topics", "refs/pr/1", "README.md")
    with pytest.raises(NotFoundError):
        route(b"/acme/topics/resolve/main")


def test_a_taken_port_is_an_error_that_names_it_and_the_way_out(registry: EmbeddedRegistry, port: HubPort) -> None:
    taken = int(port.address.rpartition(":")[2])
    with pytest.raises(UnavailableError, match=f"{port.address}.*--http-port 0"):
        HubPort(registry, "127.0.0.1", taken)
