"""Every hostile artifact is refused by name, cheaply, on both ways into a registry, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.registry.hostile.corpus import CASES
from tests.registry.hostile.fusions import CARD, make_fusion, make_parts, publish_parts
from tests.registry.hostile.measured import MAX_CPU_S, MAX_RSS_BYTES, Outcome
from tests.registry.hostile.server import RawClient, Server, counts, serving
from tests.registry.lab import ROOT, make_artifact
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import WeftError
from weft_registry.home import Home
from weft_registry.remote.registry import RemoteRegistry

NAME = "hostile/artifact"
MAX_SERVER_BYTES = 512 << 20


@dataclass(frozen=True)
class Lab:
    """One registry in a directory, another behind a server, the parts of fusions in both."""

    parts: Path
    home: Path
    pusher: subprocess.Popen[str]
    served_home: Path
    server: Server
    client: RawClient

    def push(self, directory: Path) -> Outcome:
        """Pushes a directory in a process of its own."""
        assert self.pusher.stdin is not None
        assert self.pusher.stdout is not None
        self.pusher.stdin.write(f"{directory}\n")
        self.pusher.stdin.flush()
        answer = json.loads(self.pusher.stdout.readline())
        assert "died" not in answer, f"the process that pushed it died: status {answer['died']}"
        return Outcome(**answer)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    root = tmp_path_factory.mktemp("hostile")
    parts, home, served_home = root / "parts", root / "home", root / "served"
    make_parts(parts)
    registry = EmbeddedRegistry(Home(home))
    publish_parts(registry, parts)
    registry.close()
    warm = make_artifact(root / "warm", readme=CARD)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / p) for p in ("protos", "registry", "."))}
    command = [sys.executable, "-m", "tests.registry.hostile.measured", str(home), str(warm)]
    with subprocess.Popen(
        command, env=environment, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as pusher:
        assert pusher.stdout is not None
        assert pusher.stdout.readline() == "ready\n"
        with serving(served_home) as server:
            remote = RemoteRegistry(server.address)
            publish_parts(remote, parts)
            remote.close()
            client = RawClient(server.address)
            yield Lab(parts, home, pusher, served_home, server, client)
            client.close()
        pusher.stdin.close()  # type: ignore[union-attr]


@pytest.fixture
def made(lab: Lab, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The artifact of a case."""
    case = CASES[request.param]
    (tmp_path / "parts").symlink_to(lab.parts)
    directory = tmp_path / "artifact"
    if case.kind == "fusion":
        make_fusion(directory, lab.parts)
    else:
        make_artifact(directory, kind=case.kind)
    case.make(directory)
    return directory


@pytest.mark.parametrize(("name", "made"), [(name, name) for name in CASES], indirect=["made"], ids=list(CASES))
def test_a_hostile_artifact_is_refused(name: str, made: Path, lab: Lab) -> None:
    case = CASES[name]
    before = counts(lab.home)
    pushed = lab.push(made)
    assert pushed.error, "it was accepted"
    assert case.says in pushed.told
    assert pushed.cpu_s < MAX_CPU_S
    assert pushed.peak_bytes < MAX_RSS_BYTES
    assert counts(lab.home) == before
    if not case.wire_says:
        return
    before = counts(lab.served_home)
    manifest = lab.client.send_files(NAME, made)
    errors: list[WeftError] = []

    def publish() -> None:
        with pytest.raises(WeftError) as caught:
            lab.client.publish(NAME, manifest, tags=["v1"], aliases=["production"])
        errors.append(caught.value)

    spent = lab.server.spent_by(publish)
    error = errors[0]
    told = [error.message, *(f"{violation.field}: {violation.description}" for violation in error.violations)]
    assert any(case.wire_says in text for text in told), told
    assert error.reason != "INTERNAL"
    assert spent.cpu_s < MAX_CPU_S
    assert spent.grown_bytes < MAX_RSS_BYTES
    assert counts(lab.served_home) == before


def test_the_server_has_seen_it_all_and_is_no_larger_than_it_should_be(lab: Lab) -> None:
    # What allocators keep of the largest calls, one in each of the threads that answer, and everything imported.
    assert lab.server.process.memory_info().rss < MAX_SERVER_BYTES


def test_the_corpus_is_as_large_as_it_is_said_to_be() -> None:
    assert len(CASES) >= 200
    assert sum(1 for case in CASES.values() if case.wire_says) >= 180
