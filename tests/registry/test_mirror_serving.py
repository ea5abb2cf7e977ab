"""`weft registry serve --upstream`: two registries in processes of their own, one of which is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.registry.hub_lab import ask
from tests.registry.lab import ROOT
from weft_registry import transfer
from weft_registry.errors import PreconditionError
from weft_registry.reference import AdapterName
from weft_registry.remote.registry import RemoteRegistry

NewArtifact = Callable[..., Path]
NAME = AdapterName("acme", "topics")


@dataclass
class Served:
    process: subprocess.Popen[str]
    grpc: str
    http: str

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Starts `weft registry serve` on free ports, with a home of its own; ends what it started."""
    started: list[Served] = []

    def start(name: str, *arguments: str) -> Served:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("WEFT_")}
        command = [sys.executable, "-m", "weft_client.cli", "registry", "serve", "--port", "0", "--http-port", "0"]
        process = subprocess.Popen(
            [*command, "--grace", "0", *arguments],
            env={**kept, "WEFT_HOME": str(tmp_path / name)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert process.stdout is not None
        lines = "".join(process.stdout.readline() for _ in range(2))
        found = re.fullmatch(r"http on (127\.0\.0\.1:\d+)\nready on (127\.0\.0\.1:\d+)\n", lines)
        if found is None:
            process.kill()
            raise AssertionError(process.communicate())
        started.append(Served(process, found[2], found[1]))
        return started[-1]

    yield start
    for served in started:
        served.end()


def upstream_health(address: str) -> int:
    with grpc.insecure_channel(address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service="weft.upstream"), timeout=30
        )
    return int(answer.status)


def until(wanted: int, address: str) -> None:
    deadline = time.monotonic() + 60
    while upstream_health(address) != wanted:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_mirror_goes_on_when_its_upstream_is_killed(
    serve: Callable[..., Served], new_artifact: NewArtifact, tmp_path: Path
) -> None:
    upstream = serve("upstream")
    mirror = serve("mirror", "--upstream", upstream.grpc)
    directory = new_artifact()
    there, here = RemoteRegistry(upstream.grpc), RemoteRegistry(mirror.grpc)
    try:
        version = transfer.push(there, directory, NAME, tags=["v1"], aliases=["live"]).version
        assert transfer.pull(here, "acme/topics:live", tmp_path / "before") == version
        until(health_pb2.HealthCheckResponse.SERVING, mirror.grpc)
        with pytest.raises(PreconditionError, match=f"mirror of {upstream.grpc}"):
            transfer.push(here, directory, NAME)
        upstream.end()
        assert transfer.pull(here, "acme/topics:live", tmp_path / "after").digest == version.digest
        until(health_pb2.HealthCheckResponse.NOT_SERVING, mirror.grpc)
        reply = ask(mirror.http, "/api/models/acme/topics/revision/live")
        assert reply.status == 200
        assert re.fullmatch(r"since=[0-9TZ:-]+; upstream=.*", reply.headers["x-weft-stale"])
        commit = version.digest[7:47]
        for path in directory.iterdir():
            assert ask(mirror.http, f"/acme/topics/resolve/{commit}/{path.name}").body == path.read_bytes()
    finally:
        there.close()
        here.close()
    mirror.process.send_signal(signal.SIGTERM)
    out, err = mirror.process.communicate(timeout=60)
    assert (mirror.process.returncode, out) == (0, "")
    assert f"mirror of {upstream.grpc}" in err
    assert f"the upstream {upstream.grpc} does not answer" in err
    assert "Traceback" not in err


def test_a_check_of_a_mirror_does_not_miss_what_was_never_brought(
    serve: Callable[..., Served], new_artifact: NewArtifact, tmp_path: Path
) -> None:
    upstream = serve("upstream")
    mirror = serve("mirror", "--upstream", upstream.grpc)
    there, here = RemoteRegistry(upstream.grpc), RemoteRegistry(mirror.grpc)
    try:
        for seed in range(2):
            transfer.push(there, new_artifact(seed=seed), NAME, tags=[f"v{seed}"])
        transfer.pull(here, "acme/topics:v0", tmp_path / "pulled")
        here.resolve("acme/topics:v1")
    finally:
        there.close()
        here.close()
    for served in (mirror, upstream):
        served.end()
    environment = {**os.environ, "WEFT_HOME": str(tmp_path / "mirror")}
    command = [sys.executable, "-m", "weft_client.cli", "registry", "check"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    weights = max((tmp_path / "mirror" / "registry" / "blobs").rglob("*"), key=lambda path: path.stat().st_size)
    weights.chmod(0o600)
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    assert ran.returncode == 1, "what is held has to be right"
