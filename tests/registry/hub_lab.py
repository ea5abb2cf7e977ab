"""What the tests of the Hub face share: plain HTTP, a proxy that cuts connections, and the client in a process."""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.registry.lab import ROOT


@dataclass(frozen=True)
class Reply:
    """An HTTP response; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def ask(
    address: str, path: str, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes | None = None
) -> Reply:
    """One request, its path sent exactly as given. Redirects are not followed."""
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request(method, path, body, headers=dict(headers or {}))
        response = connection.getresponse()
        body = response.read()
        return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, body)
    finally:
        connection.close()


def ask_json(
    address: str, path: str, document: object, method: str = "POST", headers: Mapping[str, str] | None = None
) -> Reply:
    """One request with a JSON document."""
    kind = {"Content-Type": "application/json"}
    return ask(address, path, method, {**kind, **(headers or {})}, json.dumps(document).encode())


def ndjson(*operations: tuple[str, object], parent: str | None = None) -> bytes:
    """A commit's body: files from pairs of a path and bytes, anything else from pairs of a key and a value."""
    header = {"summary": "test", "description": "", **({"parentCommit": parent} if parent else {})}
    lines: list[object] = [{"key": "header", "value": header}]
    for name, content in operations:
        if isinstance(content, bytes):
            encoded = base64.b64encode(content).decode()
            lines.append({"key": "file", "value": {"content": encoded, "path": name, "encoding": "base64"}})
        else:
            lines.append({"key": name, "value": content})
    return b"".join(json.dumps(entry).encode() + b"\n" for entry in lines)


@dataclass
class CuttingProxy:
    """Passes everything on, except that it cuts the first answer that grows beyond `cut_after` bytes."""

    target: tuple[str, int]
    cut_after: int
    address: str = ""
    heads: list[bytes] = field(default_factory=list)
    """What clients sent, as it came."""
    cuts: int = 0

    def pass_on(self, client: socket.socket) -> None:
        with client, socket.create_connection(self.target) as server:
            back = threading.Thread(target=self._answers, args=(server, client), daemon=True)
            back.start()
            with suppress(OSError):
                while data := client.recv(65536):
                    self.heads.append(data)
                    server.sendall(data)
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            back.join()

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        passed = 0
        with suppress(OSError):
            while data := server.recv(65536):
                passed += len(data)
                if passed > self.cut_after and not self.cuts:
                    self.cuts += 1
                    break
                client.sendall(data)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


@contextmanager
def cutting_proxy(address: str, cut_after: int) -> Iterator[CuttingProxy]:
    """A proxy before the server at `address`."""
    host, _, port = address.rpartition(":")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        proxy = CuttingProxy((host, int(port)), cut_after, f"127.0.0.1:{listening.getsockname()[1]}")

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listening.accept()
                    threading.Thread(target=proxy.pass_on, args=(client,), daemon=True).start()

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        yield proxy
        listening.shutdown(socket.SHUT_RDWR)
        accepting.join(10)


def environment(address: str, home: Path) -> dict[str, str]:
    """Of a process whose Hub is the server at `address`. Nothing else is set, but where a registry of the process's own
    would keep what it has."""
    others = ("HF_", "TRANSFORMERS_", "WEFT_HOME", "WEFT_SERVER")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(others) and key != "WEFT_REGISTRY"}
    path = os.pathsep.join([str(ROOT / "protos"), str(ROOT / "registry")])
    return {**kept, "PYTHONPATH": path, "HF_ENDPOINT": f"http://{address}", "HF_HOME": str(home)}


def run_client(script: str, *arguments: str, address: str, home: Path) -> str:
    """Runs a script with the stock client, and returns what it printed."""
    ran = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=environment(address, home),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def hf(*arguments: str, address: str, home: Path) -> str:
    """Runs the stock command line, and returns what it printed."""
    command = [str(Path(sys.executable).parent / "hf"), *arguments]
    ran = subprocess.run(
        command, env=environment(address, home), capture_output=True, text=True, timeout=240, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr
