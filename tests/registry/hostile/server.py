"""A registry served by a process of its own, measured from outside, and a client that sends whatever it is told to."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil

from tests.registry.lab import ROOT
from weft.v1 import registry_pb2 as pb
from weft.v1 import registry_pb2_grpc
from weft_registry import artifact
from weft_registry import digest as digests
from weft_registry.wire.status import from_rpc_error

CHUNK_BYTES = 1 << 20
TABLES = ("adapters", "versions", "version_files", "version_metrics", "tags", "aliases", "publishes")


@dataclass(frozen=True)
class Spent:
    """What a call cost the server."""

    cpu_s: float
    grown_bytes: int
    """How much more memory than before the process had meanwhile, at most."""


@dataclass
class Server:
    """`weft registry serve`. Addresses are HOST:PORT."""

    process: psutil.Process
    address: str
    http_address: str

    def spent_by(self, call: object) -> Spent:
        """Runs `call`, and says what the process spent meanwhile."""
        assert callable(call)
        # The kernel's way to forget the peak that was.
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        before, held = self.process.cpu_times(), self.process.memory_info().rss
        call()
        after = self.process.cpu_times()
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert peak is not None
        seconds = after.user + after.system - before.user - before.system
        return Spent(seconds, int(peak[1]) * 1024 - held)


@contextmanager
def serving(home: Path, *options: str) -> Iterator[Server]:
    """The server, until the context ends; it must have lived until then."""
    path = os.pathsep.join(str(ROOT / part) for part in ("protos", "registry", "client"))
    environment = {**os.environ, "PYTHONPATH": path, "WEFT_HOME": str(home)}
    environment.pop("WEFT_REGISTRY", None)
    command = [
        sys.executable,
        "-m",
        "weft_client.cli",
        "registry",
        "serve",
        "--port",
        "0",
        "--http-port",
        "0",
        *options,
    ]
    with subprocess.Popen(
        [*command, *options], env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        try:
            assert process.stdout is not None
            found = {}
            for line in process.stdout:
                match = re.match(r"(http|ready) on (\S+)", line)
                if match:
                    found[match[1]] = match[2]
                if "ready" in found:
                    break
            yield Server(psutil.Process(process.pid), found["ready"], found["http"])
            assert process.poll() is None, "the server died"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


class RawClient:
    """Speaks the protocol and checks nothing. Errors are those of `weft_registry.errors`."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(
            address, options=[("grpc.max_send_message_length", 64 << 20), ("grpc.enable_http_proxy", 0)]
        )
        self.stub = registry_pb2_grpc.RegistryServiceStub(self._channel)

    def upload(self, adapter: str, path: Path) -> None:
        """Uploads a file by the digest that it has."""
        digest, size = digests.of_file(path), path.stat().st_size
        begun = self.stub.StartUpload(pb.StartUploadRequest(digest=digest, size_bytes=size, adapter=adapter))
        if not begun.complete:
            self.stub.WriteUpload(_chunks(path, begun.upload_id, size))

    def publish(self, adapter: str, manifest: bytes, tags: Sequence[str] = (), aliases: Sequence[str] = ()) -> str:
        """Publishes a manifest, whatever it says. Returns the digest."""
        request = pb.PublishRequest(adapter=adapter, manifest_json=manifest, tags=tags, aliases=aliases)
        try:
            return self.stub.Publish(request).version.digest
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def send_files(self, adapter: str, directory: Path) -> bytes:
        """Uploads every regular file of a directory. Returns the bytes of its manifest, as they are."""
        for path in sorted(directory.iterdir()):
            if path.name != artifact.MANIFEST and path.is_file():
                self.upload(adapter, path)
        return (directory / artifact.MANIFEST).read_bytes()

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()


def _chunks(path: Path, upload_id: str, size: int) -> Iterator[pb.WriteUploadRequest]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            at = file.tell() - len(chunk)
            yield pb.WriteUploadRequest(upload_id=upload_id, offset_bytes=at, chunk=chunk)
    yield pb.WriteUploadRequest(upload_id=upload_id, offset_bytes=size, finish=True)


def counts(home: Path) -> dict[str, int]:
    """How many rows the catalog of a home has in each table that a publish writes."""
    with sqlite3.connect(f"file:{home / 'registry' / 'catalog.db'}?mode=ro", uri=True) as connection:
        return {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in TABLES}
