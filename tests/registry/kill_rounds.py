"""Kills a served registry at random times while clients push: `python -m tests.registry.kill_rounds --rounds 200`.

After each kill, and before anything else happens, every version must be whole, and everything that was acknowledged
must be there.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.registry.kill_lab import Client, ServedRegistry, insist, large_artifact
from tests.registry.lab import make_artifact
from weft_registry import transfer
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.reference import AdapterName
from weft_registry.remote.registry import RemoteRegistry

_LONGEST_LIFE_S = 2.0
_CLIENTS = 2


@dataclass(frozen=True)
class KillReport:
    """What came of it."""

    kills: int
    acknowledged: int
    """Publishes that were answered."""
    interrupted_uploads: int
    """Kills that left an upload in the middle of a file."""
    seconds: float
    losses: tuple[str, ...] = ()
    """Acknowledged versions that were not there after a kill."""
    problems: tuple[str, ...] = ()
    """What checks found after a kill."""


@dataclass
class _Pushing:
    """One client that pushes one artifact after another until it is told to stop."""

    work: Path
    number: int
    stop: threading.Event
    acknowledged: list[str] = field(default_factory=list)

    def run(self, registry: RemoteRegistry) -> None:
        adapter = AdapterName("team", f"client{self.number}")
        count = 0
        while not self.stop.is_set():
            directory = self.work / f"{self.number}-{count}"
            seed = self.number * 100_000 + count
            if count % 4 == 3:
                large_artifact(directory, 8, seed)
            else:
                # The same weights from all clients, each with a card of its own.
                make_artifact(directory, seed=count % 50, readme=f"Card {seed}.\n")
            published = insist(lambda path=directory: transfer.push(registry, path, adapter))  # type: ignore[misc]
            self.acknowledged.append(f"{adapter}@{published.version.digest}")
            for path in directory.iterdir():
                path.unlink()
            directory.rmdir()
            count += 1


def kill_in_rounds(home: Home, work: Path, rounds: int, seed: int) -> KillReport:
    """Starts and kills a server so often, while clients push to it."""
    began, chance = time.monotonic(), random.Random(seed)
    served, stop = ServedRegistry(home), threading.Event()
    pushing = [_Pushing(work, number, stop) for number in range(_CLIENTS)]
    clients = [Client(served.address, each.run) for each in pushing]
    losses: list[str] = []
    problems: list[str] = []
    interrupted = 0
    try:
        for kill in range(rounds):
            served.start()
            if kill == 0:
                for client in clients:
                    client.start()
            time.sleep(chance.uniform(0.0, _LONGEST_LIFE_S))
            served.kill()
            promised = [reference for each in pushing for reference in list(each.acknowledged)]
            found = look(home)
            interrupted += found.open_uploads > 0
            losses += sorted(set(promised) - found.versions)
            problems += found.problems
        served.start()
        stop.set()
        for client in clients:
            client.done()
        promised = [reference for each in pushing for reference in each.acknowledged]
        last = look(home)
        losses += sorted(set(promised) - last.versions)
        problems += last.problems
    finally:
        stop.set()
        served.kill()
    return KillReport(rounds, len(promised), interrupted, time.monotonic() - began, tuple(losses), tuple(problems))


@dataclass(frozen=True)
class _Found:
    versions: set[str]
    problems: tuple[str, ...]
    open_uploads: int


def look(home: Home) -> _Found:
    """Everything that the registry has, opened as it was left."""
    with closing(EmbeddedRegistry(home)) as registry:
        problems = list(registry.check())[-1].problems
        versions = {
            f"{summary.adapter}@{version.digest}"
            for summary in registry.list_adapters()
            for version in registry.list_versions(summary.adapter)
        }
    uploads = [path for path in (home.registry / "uploads").iterdir() if path.stat().st_size]
    return _Found(versions, problems, len(uploads))


def main() -> int:
    """Prints the report; 1 if anything was lost or half there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="weft-kill-") as directory:
        root = Path(directory)
        report = kill_in_rounds(Home(root / "home"), root / "work", arguments.rounds, arguments.seed)
    print(json.dumps(asdict(report), indent=2))
    return 1 if report.losses or report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
