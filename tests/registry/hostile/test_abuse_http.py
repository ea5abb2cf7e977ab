"""Abuse of the HTTP port: every request is answered or cut off, and the server is afterwards as it was before."""

from __future__ import annotations

import json
import re
import socket
from contextlib import suppress

import pytest

from tests.registry.hostile.conftest import Tenants
from tests.registry.hub_lab import Reply, ask

FILE = "/mine/secret/resolve/v1/README.md"


def raw(tenants: Tenants, request: bytes, timeout_s: float = 30) -> bytes:
    """What comes back for these bytes, until the server closes."""
    host, _, port = tenants.server.http_address.rpartition(":")
    received = b""
    with socket.create_connection((host, int(port)), timeout=timeout_s) as connection, suppress(ConnectionError):
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        while chunk := connection.recv(65536):
            received += chunk
    return received


def get(tenants: Tenants, path: str, token: str | None = None, **headers: str) -> Reply:
    said = {"Authorization": f"Bearer {token or tenants.mine}"} if token != "" else {}
    return ask(tenants.server.http_address, path, headers={**said, **headers})


def commit_of(tenants: Tenants) -> str:
    return str(get(tenants, FILE).headers["x-repo-commit"])


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3})", answer)]


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
SMUGGLING = {
    "both lengths": b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "two lengths": b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
    "a length with a sign": b"Content-Length: +%d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
    "a length in other digits": b"Content-Length: 0x24\r\n\r\n" + SMUGGLED,
    "a negative length": b"Content-Length: -1\r\n\r\n" + SMUGGLED,
    "an unknown encoding": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "an encoding twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "an encoding after a space": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "an encoding on a folded line": b"X: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "a chunk of a size beyond numbers": b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffffffff\r\nx\r\n0\r\n\r\n",
    "a chunk whose size is a word": b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + SMUGGLED,
    "a header without a name": b": x\r\n\r\n" + SMUGGLED,
    "a header with a nul": b"X: a\0b\r\n\r\n" + SMUGGLED,
}


@pytest.mark.parametrize("case", SMUGGLING)
def test_a_request_in_another_is_not_answered(case: str, tenants: Tenants) -> None:
    """Whatever two servers could read differently is refused, and the connection with it."""
    for line in (b"GET /api/models HTTP/1.1", b"POST /api/repos/create HTTP/1.1"):
        answer = raw(tenants, line + b"\r\nHost: x\r\n" + SMUGGLING[case])
        assert b"smuggled" not in answer
        # A folded line is a line (RFC 9112, section 5.2): then what follows the request is no request, and ends it.
        assert statuses(answer)[1:] in ([], [400])
        assert all(400 <= status < 500 for status in statuses(answer)), answer[:200]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64,
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\r\n\r\n",
        b"G" * 100_000,
        b"GET " + b"/a" * 50_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(10_000)) + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\r\n" * 50_000,
        b"GET http://evil/api/models HTTP/1.1\r\nHost: x\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT evil:443 HTTP/1.1\r\nHost: evil:443\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused_or_cut_off(request_bytes: bytes, tenants: Tenants) -> None:
    answer = raw(tenants, request_bytes)
    assert all(400 <= status < 500 or status == 100 for status in statuses(answer)), answer[:200]


@pytest.mark.parametrize(
    "path",
    [
        "/mine/secret/resolve/v1/%2e%2e/%2e%2e/catalog.db",
        "/mine/secret/resolve/v1/..%2f..%2fcatalog.db",
        "/mine/secret/resolve/v1/%252e%252e%252fcatalog.db",
        "/mine/secret/resolve/v1/%c0%ae%c0%ae%c0%afcatalog.db",
        "/mine/secret/resolve/v1/%e0%80%ae%e0%80%ae/x",
        "/mine/secret/resolve/v1/README.md%00",
        "/mine/secret/resolve/v1/README.md%0d%0aSet-Cookie:%20a=b",
        "/mine/secret/resolve/v1/\\..\\catalog.db",
        "/mine/secret/resolve/%2e%2e/README.md",
        "/mine/secret/resolve/v1/%ed%a0%80",
        "/mine/secret/resolve/v1/README.md;.png",
        "/mine/..%2ftheirs/resolve/v1/README.md",
        "/api/models/mine%2f..%2ftheirs/secret",
        "//theirs/secret/resolve/v1/README.md",
        "/api/models/%2e%2e/%2e%2e/etc/passwd",
        "/mine/secret/resolve/v1/%u002e%u002e",
        "/mine/secret/resolve/v1/%",
        "/mine/secret/resolve/v1/%zz",
    ],
)
def test_a_path_that_climbs_leads_nowhere(path: str, tenants: Tenants) -> None:
    for method in ("GET", "HEAD"):
        reply = ask(tenants.server.http_address, path, method, {"Authorization": f"Bearer {tenants.mine}"})
        assert reply.status in (400, 404)
        assert "set-cookie" not in reply.headers
        assert b"root:" not in reply.body


@pytest.mark.parametrize(
    "wanted",
    [
        "bytes=" + ",".join(f"{i}-{i}" for i in range(1000)),
        "bytes=" + "0-," * 3000,
        "bytes=0-" + "9" * 5000,
        "bytes=-0",
        "bytes=9-0",
        "bytes=0-0,0-0,0-0",
        "bytes=99999999999999999999-",
        "bytes=\u0660-\u0669",
        "lines=0-9",
        "bytes=" + "-" * 4000,
    ],
)
def test_a_range_is_served_once_or_refused(wanted: str, tenants: Tenants) -> None:
    """Many ranges of one file are not many answers: the whole is sent, as to who asks for no range, or nothing."""
    path = f"/mine/secret/resolve/{commit_of(tenants)}/README.md"
    reply = get(tenants, path, Range=wanted.encode().decode("latin-1"))
    assert reply.status in (200, 206, 400, 416)
    assert reply.status >= 400 or len(reply.body) <= len(b"Of mine.\n")


def asked_about(adapter: str, commit: str) -> list[tuple[str, str]]:
    """Every way to ask for an adapter, and for what is in it."""
    return [
        ("GET", f"/api/models/{adapter}"),
        ("GET", f"/api/models/{adapter}?blobs=true"),
        ("GET", f"/api/models/{adapter}/revision/v1"),
        ("GET", f"/api/models/{adapter}/revision/{commit}"),
        ("GET", f"/api/models/{adapter}/revision/none"),
        ("GET", f"/api/models/{adapter}/tree/main"),
        ("GET", f"/api/models/{adapter}/refs"),
        ("GET", f"/api/models/{adapter}/commits/main"),
        ("GET", f"/api/models?author={adapter.partition('/')[0]}"),
        ("GET", f"/{adapter}/resolve/v1/README.md"),
        ("HEAD", f"/{adapter}/resolve/v1/README.md"),
        ("GET", f"/{adapter}/resolve/{commit}/README.md"),
        ("HEAD", f"/{adapter}/resolve/{commit}/adapter_model.safetensors"),
        ("POST", f"/api/models/{adapter}/commit/main"),
        ("POST", f"/api/models/{adapter}/preupload/main"),
        ("POST", f"/api/models/{adapter}/branch/x"),
        ("DELETE", f"/api/models/{adapter}/branch/production"),
        ("POST", f"/api/models/{adapter}/tag/v1"),
        ("DELETE", f"/api/models/{adapter}/tag/v1"),
        ("POST", f"/{adapter}.git/info/lfs/objects/batch"),
    ]


@pytest.mark.parametrize("who", ["another tenant", "nobody", "a token of nobody's"])
def test_what_is_not_yours_is_answered_as_what_is_not_there(who: str, tenants: Tenants) -> None:
    """The same status, headers and body: not even existence is told."""
    unknown = "weft_" + "0" * 16 + "_" + "0" * 64
    token = {"another tenant": tenants.mine, "nobody": "", "a token of nobody's": unknown}[who]
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    there = asked_about("theirs/secret", tenants.digest[7:47])
    absent = asked_about("nobody/secret", "e" * 40)
    for (method, path), (_, other) in zip(there, absent, strict=True):
        something = ask(tenants.server.http_address, path, method, headers)
        nothing = ask(tenants.server.http_address, other, method, headers)
        told = [
            (reply.status, {k: v for k, v in reply.headers.items() if k != "date"}, reply.body)
            for reply in (something, nothing)
        ]
        expected = repr(told[1]).replace("nobody", "theirs").replace("e" * 40, tenants.digest[7:47])
        assert repr(told[0]) == expected, (method, path)
        assert method == "GET" or something.status >= 400


def abuse(tenants: Tenants) -> None:
    """Requests that are broken off, drip, or never begin."""
    host, _, port = tenants.server.http_address.rpartition(":")
    idle = [socket.create_connection((host, int(port)), timeout=30) for _ in range(300)]
    try:
        for number, connection in enumerate(idle):
            with suppress(OSError):
                if number % 3 == 0:
                    connection.sendall(b"GET /api/models HTTP/1.1\r\nHo")
                elif number % 3 == 1:
                    token = tenants.mine.encode()
                    head = b"POST /api/models/mine/secret/commit/main HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
                    connection.sendall(head + token + b"\r\nContent-Length: 100000\r\n\r\n{")
        for connection in idle[:30]:
            with suppress(OSError):
                connection.sendall(b"x")
    finally:
        for connection in idle:
            connection.close()
    path = f"/mine/secret/resolve/{'0' * 40}/adapter_model.safetensors"
    for case in SMUGGLING.values():
        raw(tenants, b"GET " + path.encode() + b" HTTP/1.1\r\nHost: x\r\n" + case)


def test_the_server_is_afterwards_as_it_was(tenants: Tenants) -> None:
    tenants.gives_back(lambda: abuse(tenants))
    reply = get(tenants, "/api/models/mine/secret/revision/v1")
    assert reply.status == 200
    assert json.loads(reply.body)["id"] == "mine/secret"


def test_while_three_hundred_connections_idle_others_are_told_to_come_back(tenants: Tenants) -> None:
    """There is a most of connections; beyond it an answer says so, at once, and it ends with them."""
    host, _, port = tenants.server.http_address.rpartition(":")
    idle = [socket.create_connection((host, int(port)), timeout=30) for _ in range(300)]
    try:
        answer = raw(tenants, b"GET /api/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert statuses(answer) in ([401], [503])
    finally:
        for connection in idle:
            connection.close()
    tenants.gives_back(lambda: None)
    assert get(tenants, "/api/models/mine/secret").status == 200
