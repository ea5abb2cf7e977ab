"""A server that asks who is calling, and two tenants of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.registry.hostile.server import Server, serving
from tests.registry.lab import make_artifact
from weft_registry import artifact, transfer
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.reference import AdapterName

ROUNDS = 10
SETTLE_S = 60.0
"""How long what is left of an abuse may take to go away: the longest time limit that a server sets its clients is 10 s
for a request to arrive."""


@dataclass(frozen=True)
class Tenants:
    """A server, a token for the namespace `mine`, and what is in another one: an adapter of the same name and tags."""

    server: Server
    home: Path
    mine: str
    theirs: str
    digest: str
    """Of the version of theirs/secret."""
    blob: str
    """A blob of it that nobody else has."""
    own_blob: str
    """A blob of mine/secret."""

    def held(self) -> tuple[int, ...]:
        """Threads, file descriptors and open uploads of the server, now."""
        uploads = self.home / "registry" / "uploads"
        process = self.server.process
        return process.num_threads(), process.num_fds(), len(list(uploads.iterdir())) if uploads.is_dir() else 0

    def gives_back(self, abuse: Callable[[], object]) -> None:
        """Asserts that what an abuse takes is given back: done again and again, it comes to take nothing more.

        Pools of threads and of database connections fill up first, to their bounds; a leak grows every time.
        """
        most = self._held_when_quiet()
        for _ in range(ROUNDS):
            abuse()
            now = self._held_when_quiet()
            if all(have <= may for have, may in zip(now, most, strict=True)):
                return
            most = tuple(map(max, now, most))
        raise AssertionError(f"after {ROUNDS} rounds it still takes more: {most} threads, descriptors and uploads")

    def _held_when_quiet(self) -> tuple[int, ...]:
        until = time.monotonic() + SETTLE_S
        while self.connections():
            assert time.monotonic() < until, f"{self.connections()} connections are still open"
            time.sleep(0.05)
        return self.held()

    def connections(self) -> int:
        """Clients that are connected to the server now, this process's gRPC channels excepted."""
        ours = {c.laddr for c in psutil.Process(os.getpid()).net_connections("tcp") if c.status == "ESTABLISHED"}
        found = self.server.process.net_connections("tcp")
        return sum(1 for c in found if c.status in ("ESTABLISHED", "CLOSE_WAIT") and c.raddr and c.raddr not in ours)


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenants]:
    root = tmp_path_factory.mktemp("tenants")
    registry = EmbeddedRegistry(Home(root / "home"))
    tokens = {
        name: registry.create_token(name, ["read", "publish", "alias"], [name]).secret for name in ("mine", "theirs")
    }
    for seed, name in enumerate(tokens):
        made = make_artifact(root / name, seed=seed, readme=f"Of {name}.\n")
        version = transfer.push(
            registry, made, AdapterName(name, "secret"), tags=["v1"], aliases=["production"]
        ).version
    cards = {n: next(f.sha256 for f in artifact.read(root / n).files if f.path == artifact.CARD) for n in tokens}
    registry.close()
    with serving(root / "home", "--auth") as server:
        yield Tenants(
            server, root / "home", tokens["mine"], tokens["theirs"], version.digest, cards["theirs"], cards["mine"]
        )
