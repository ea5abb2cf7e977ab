"""A proxy for TCP in front of a server, which breaks what passes through it as a test asks."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass, field


@dataclass
class Faults:
    """What goes wrong from now on. Counts are of connections, and count down; -1 is for ever."""

    refuse: int = 0
    """Connections that are closed before anything is read."""
    fail: int = 0
    """Requests that are answered by `status`, without reaching the server."""
    status: int = 500
    truncate: int = 0
    """Answers with a blob's bytes that end after `truncate_after` bytes, headers counted."""
    truncate_after: int = 1000
    delay_s: float = 0.0
    """Before each answer's first byte."""
    silent: int = 0
    """Connections that are taken and never answered."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, name: str) -> bool:
        """Whether this one goes wrong so; then there is one fewer to come."""
        with self.lock:
            left: int = getattr(self, name)
            if left > 0:
                setattr(self, name, left - 1)
            return left != 0


class Proxy:
    """Owns a port of 127.0.0.1 and a thread for each connection. One connection carries one request, so that a fault
    meets each of them."""

    def __init__(self, port: int) -> None:
        self.faults = Faults()
        self.requests = 0
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open = True
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def endpoint(self) -> str:
        """As a URL."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        """Takes no more connections."""
        self._open = False
        self._listener.close()

    def _accept(self) -> None:
        while self._open:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            if self.faults.take("refuse"):
                # A reset, and not a polite end.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                return
            head = _head(client)
            if not head:
                return
            self.requests += 1
            if self.faults.take("silent"):
                while self._open and client.recv(1 << 16):
                    pass
                return
            if self.faults.take("fail"):
                _drain(client, head)
                answer = f"HTTP/1.1 {self.faults.status} Broken\r\nContent-Length: 6\r\nConnection: close\r\n\r\nbroken"
                client.sendall(answer.encode())
                return
            try:
                self._forward(client, head)
            finally:
                # Another thread reads from it: closing alone would not end the connection.
                client.shutdown(socket.SHUT_RDWR)

    def _forward(self, client: socket.socket, head: bytes) -> None:
        with socket.create_connection(self._target) as server:
            # One request to a connection: the server says so to the client, too.
            lines, _, rest = head.partition(b"\r\n\r\n")
            server.sendall(lines + b"\r\nConnection: close\r\n\r\n" + rest)
            threading.Thread(target=_pump, args=(client, server), daemon=True).start()
            time.sleep(self.faults.delay_s)
            blob = head.startswith(b"GET ") and b"/blobs/" in head.partition(b"\r\n")[0]
            left = self.faults.truncate_after if blob and self.faults.take("truncate") else -1
            while data := server.recv(1 << 16):
                if left >= 0:
                    data, left = data[:left], max(0, left - len(data))
                client.sendall(data)
                if left == 0:
                    return


def _head(client: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        data = client.recv(1 << 16)
        if not data:
            return b""
        head += data
    return head


def _drain(client: socket.socket, head: bytes) -> None:
    """Reads a request's body: an answer that comes before its end is lost with the connection."""
    lines, _, rest = head.partition(b"\r\n\r\n")
    if b"expect: 100-continue" in lines.lower():
        return
    headers = dict(line.lower().split(b": ", 1) for line in lines.split(b"\r\n")[1:])
    left = int(headers.get(b"content-length", 0)) - len(rest)
    while left > 0 and (data := client.recv(min(left, 1 << 16))):
        left -= len(data)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
