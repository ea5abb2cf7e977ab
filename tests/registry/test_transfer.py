"""Push and pull: a directory holds exactly one version, or is not there."""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from tests.registry.lab import python, serving
from weft_registry import artifact, transfer
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import CorruptionError, NotFoundError, PreconditionError, UnavailableError
from weft_registry.home import Home
from weft_registry.reference import AdapterName
from weft_registry.remote.registry import RemoteRegistry

NewArtifact = Callable[..., Path]
NAME = AdapterName("team", "support")


class Watched:
    """A registry whose reads are counted, and can be spoiled or broken off."""

    def __init__(
        self, registry: EmbeddedRegistry, spoil: Callable[[bytes], bytes] = bytes, breaks_after: int = 99
    ) -> None:
        self._registry = registry
        self._spoil, self._breaks_after = spoil, breaks_after
        self.reads: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._registry, name)

    def read_blob(self, digest: str, offset: int = 0, limit: int = 0, *, unverified: bool = False) -> Iterator[bytes]:
        if len(self.reads) == self._breaks_after:
            raise UnavailableError("gone")
        self.reads.append(digest)
        return (self._spoil(chunk) for chunk in self._registry.read_blob(digest, offset, limit, unverified=unverified))


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_what_is_pulled_is_what_was_pushed(
    registry: EmbeddedRegistry, new_artifact: NewArtifact, tmp_path: Path
) -> None:
    directory = new_artifact()
    pushed: list[int] = []
    pulled: list[int] = []
    published = transfer.push(registry, directory, NAME, progress=pushed.append)
    version = transfer.pull(registry, "team/support", tmp_path / "deep" / "out", pulled.append)
    assert version == published.version
    assert contents(tmp_path / "deep" / "out") == contents(directory)
    assert sum(pushed) == sum(pulled) == version.size_bytes
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_pulling_again_reads_nothing(registry: EmbeddedRegistry, new_artifact: NewArtifact, tmp_path: Path) -> None:
    version = transfer.push(registry, new_artifact(), NAME).version
    watched = Watched(registry)
    transfer.pull(watched, version, tmp_path / "out")
    assert len(watched.reads) == 3
    done: list[int] = []
    transfer.pull(watched, version, tmp_path / "out", done.append)
    assert len(watched.reads) == 3
    assert sum(done) == version.size_bytes


def test_a_pull_that_broke_off_goes_on_and_never_shows_half_a_version(
    registry: EmbeddedRegistry, new_artifact: NewArtifact, tmp_path: Path
) -> None:
    directory = new_artifact()
    transfer.push(registry, directory, NAME)
    broken = Watched(registry, breaks_after=2)
    with pytest.raises(UnavailableError):
        transfer.pull(broken, "team/support", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    watched = Watched(registry)
    transfer.pull(watched, "team/support", tmp_path / "out")
    assert len(watched.reads) == 1
    assert set(broken.reads).isdisjoint(watched.reads)
    assert contents(tmp_path / "out") == contents(directory)


def test_a_pull_that_broke_off_is_never_mixed_with_another_version(
    registry: EmbeddedRegistry, new_artifact: NewArtifact, tmp_path: Path
) -> None:
    transfer.push(registry, new_artifact(seed=1), NAME)
    with pytest.raises(UnavailableError):
        transfer.pull(Watched(registry, breaks_after=2), "team/support", tmp_path / "out")
    second = new_artifact(seed=2)
    transfer.push(registry, second, NAME)
    transfer.pull(registry, "team/support", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(second)


@pytest.mark.parametrize(
    "spoil", [lambda chunk: chunk[:-1], lambda chunk: chunk + b"x", lambda chunk: b"y" + chunk[1:]]
)
def test_wrong_bytes_from_the_registry_are_refused_and_not_kept(
    spoil: Callable[[bytes], bytes], registry: EmbeddedRegistry, new_artifact: NewArtifact, tmp_path: Path
) -> None:
    transfer.push(registry, new_artifact(), NAME)
    with pytest.raises(CorruptionError):
        transfer.pull(Watched(registry, spoil), "team/support", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.glob(".out*/*") if path.is_file()]


def test_a_destination_with_something_else_in_it_is_left_alone(
    registry: EmbeddedRegistry, new_artifact: NewArtifact, tmp_path: Path
) -> None:
    transfer.push(registry, new_artifact(), NAME)
    out = tmp_path / "out"
    out.mkdir()
    transfer.pull(registry, "team/support", out)  # An empty one is taken.
    (out / artifact.CARD).write_text("edited")
    with pytest.raises(PreconditionError, match="another directory"):
        transfer.pull(registry, "team/support", out)
    assert (out / artifact.CARD).read_text() == "edited"


def test_a_changed_blob_of_a_pulled_version_is_noticed(
    registry: EmbeddedRegistry, new_artifact: NewArtifact, tmp_path: Path
) -> None:
    version = transfer.push(registry, new_artifact(), NAME).version
    transfer.pull(registry, version, tmp_path / "out")
    weights = tmp_path / "out" / artifact.WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(PreconditionError):
        transfer.pull(registry, version, tmp_path / "out")


def test_only_missing_blobs_are_sent(registry: EmbeddedRegistry, new_artifact: NewArtifact) -> None:
    transfer.push(registry, new_artifact(seed=1), NAME)
    sent: list[str] = []

    class Sending(Watched):
        def upload(self, path: Path, digest: str, size: int, progress: Any = None, adapter: Any = None) -> None:
            sent.append(path.name)
            registry.upload(path, digest, size, progress)

    transfer.push(Sending(registry), new_artifact(seed=2), NAME)
    assert sent == [artifact.WEIGHTS]  # Card and configuration are the same bytes.


def test_open_registry_is_embedded_unless_an_address_says_otherwise(
    home: Home, monkeypatch: pytest.MonkeyPatch, registry: EmbeddedRegistry, new_artifact: NewArtifact
) -> None:
    transfer.push(registry, new_artifact(), NAME)
    embedded = transfer.open_registry(home)
    assert isinstance(embedded, EmbeddedRegistry)
    embedded.close()
    with serving(registry) as target:
        for address, variable in ((target, ""), (None, target)):
            monkeypatch.setenv("WEFT_REGISTRY", variable)
            remote = transfer.open_registry(home, address)
            assert isinstance(remote, RemoteRegistry)
            assert remote.resolve("team/support") == registry.resolve("team/support")
            remote.close()


def test_processes_pulling_to_one_place_at_once_all_get_the_version(
    home: Home, registry: EmbeddedRegistry, new_artifact: NewArtifact, tmp_path: Path
) -> None:
    directory = new_artifact()
    transfer.push(registry, directory, NAME)
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from weft_registry.home import Home\n"
        "from weft_registry.transfer import open_registry, pull\n"
        "pull(open_registry(Home.from_environment()), 'team/support', Path(sys.argv[1]))\n"
    )
    processes = [python(script, str(tmp_path / "out"), home=home) for _ in range(6)]
    outcomes = [(process.communicate(timeout=60)[1], process.returncode) for process in processes]
    assert outcomes == [("", 0)] * 6
    assert contents(tmp_path / "out") == contents(directory)


def test_a_pull_does_not_mind_that_another_takes_its_directory_away(
    registry: EmbeddedRegistry, new_artifact: NewArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Just when it is found to be there, and again just when it is held."""
    directory = new_artifact()
    transfer.push(registry, directory, NAME)
    mkdir, flock = Path.mkdir, fcntl.flock
    taken: list[str] = []

    def there_a_moment_ago(path: Path, *arguments: Any, **options: Any) -> None:
        if path.name.endswith(".partial") and not taken:
            taken.append("when it was found")
            raise FileExistsError(path)
        mkdir(path, *arguments, **options)

    def taken_while_waited_for(descriptor: int, operation: int) -> None:
        found = list(tmp_path.glob(".out.*.partial"))
        if found and len(taken) == 1:
            taken.append("when it was held")
            found[0].rmdir()
        flock(descriptor, operation)

    monkeypatch.setattr(Path, "mkdir", there_a_moment_ago)
    monkeypatch.setattr(fcntl, "flock", taken_while_waited_for)
    transfer.pull(registry, str(NAME), tmp_path / "out")
    assert taken == ["when it was found", "when it was held"]
    assert contents(tmp_path / "out") == contents(directory)


def test_pulling_what_is_not_there_creates_nothing(registry: EmbeddedRegistry, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        transfer.pull(registry, "team/nobody", tmp_path / "x" / "out")
    assert not (tmp_path / "x").exists()


def test_what_a_killed_pull_left_behind_does_no_harm(
    registry: EmbeddedRegistry, new_artifact: NewArtifact, tmp_path: Path
) -> None:
    directory = new_artifact()
    transfer.push(registry, directory, NAME)
    with pytest.raises(UnavailableError):
        transfer.pull(Watched(registry, breaks_after=2), "team/support", tmp_path / "out")
    (partial,) = tmp_path.glob(".out.*.partial")
    (partial / ".adapter_model.safetensors.123-abc").write_bytes(b"half")
    (partial / artifact.CARD).write_bytes(b"damaged")
    transfer.pull(registry, "team/support", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(directory)
    assert not list(tmp_path.glob(".out*"))


def test_a_second_pull_of_the_same_version_waits_and_reads_nothing(
    registry: EmbeddedRegistry, new_artifact: NewArtifact, tmp_path: Path
) -> None:
    version = transfer.push(registry, new_artifact(), NAME).version
    reading, go_on = threading.Event(), threading.Event()

    def hold(chunk: bytes) -> bytes:
        reading.set()
        assert go_on.wait(60)
        return chunk

    second = Watched(registry)
    with ThreadPoolExecutor(2) as pool:
        first_pull = pool.submit(transfer.pull, Watched(registry, hold), version, tmp_path / "out")
        assert reading.wait(60)
        second_pull = pool.submit(transfer.pull, second, version, tmp_path / "out")
        # Time enough for a pull that does not wait to finish; one that waits cannot, however long this is.
        assert not wait([second_pull], timeout=0.5).done
        go_on.set()
        assert first_pull.result(60) == second_pull.result(60) == version
    assert second.reads == []
