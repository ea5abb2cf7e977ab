"""Publishers, deleters and a collector without grace on one registry: `python -m tests.registry.soak --seconds 600`.

Publishers push over the same few weights, so that blobs come into need and fall out of it all the time. In the end
every version whose publish was acknowledged and whose deletion nobody asked for must be whole, and nothing may be half
there.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.registry.lab import make_artifact, python
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home

PUBLISHERS, DELETERS, WEIGHTS = 8, 2, 24
_KEPT_OF = 12
"""One publish in so many is never deleted."""

# Each prints what it did, a JSON list a line, as soon as it is acknowledged: a killed one loses no line.
_COMMON = """
import json, random, sys, time
from pathlib import Path
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home

work, number, end = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
registry = EmbeddedRegistry(Home.from_environment())
chance = random.Random(number)

def going_on():
    return time.time() < end and not (work / "stop").exists()
"""
_PUBLISH = (
    _COMMON
    + """
import shutil, uuid
from tests.registry.lab import seal
from weft_registry import artifact, transfer
from weft_registry.errors import PreconditionError
from weft_registry.reference import AdapterName

def push(directory):
    # The collector ends leases at once, so that blobs are collected again and again between upload and publish.
    global refused
    while True:
        try:
            return transfer.push(registry, directory, name)
        except PreconditionError as error:
            if error.reason != "BLOBS_MISSING":
                raise
            refused += 1

pool = sorted((work / "pool").iterdir())
name = AdapterName("team", f"publisher{number}")
count = refused = 0
with (work / f"published{number}").open("a", buffering=1) as log:
    while going_on():
        directory = work / f"push{number}"
        shutil.copytree(chance.choice(pool), directory)
        (directory / artifact.CARD).write_text(f"{number} {count} {uuid.uuid4()}\\n")
        seal(directory)
        published = push(directory)
        log.write(f"{name}@{published.version.digest}\\n")
        shutil.rmtree(directory)
        count += 1
(work / f"refused{number}").write_text(f"{refused}\\n")
"""
)
_DELETE = (
    _COMMON
    + """
deleters, kept_of = int(sys.argv[4]), int(sys.argv[5])
at = {}
with (work / f"deleting{number}").open("a", buffering=1) as log:
    while going_on():
        idle = True
        for path in sorted(work.glob("published*")):
            with path.open() as file:
                file.seek(at.get(path, 0))
                lines = [line for line in file.readlines() if line.endswith("\\n")]
            at[path] = at.get(path, 0) + sum(map(len, lines))
            for line in lines:
                reference = line.strip()
                draw = int(reference[-8:], 16)
                if draw % deleters != number or draw // deleters % kept_of == 0:
                    continue
                idle = False
                log.write(reference + "\\n")  # Before: what is asked for may have happened.
                registry.delete_version(reference)
        if idle:
            time.sleep(0.02)
"""
)
_COLLECT = (
    _COMMON
    + """
from weft_registry.catalog import tables
collections = blobs = size = 0
while going_on():
    # Leases would hide the race that this is about: most of the time there are none.
    if chance.random() < 0.8:
        with registry._catalog.write() as connection:
            connection.execute(tables.blob_leases.delete())
    report = registry.collect_garbage(grace_s=chance.choice([0.0, 0.0, 0.0, 0.05, 0.5]))
    collections, blobs, size = collections + 1, blobs + report.removed_blobs, size + report.removed_bytes
    (work / "collected.partial").write_text(json.dumps([collections, blobs, size]))
    (work / "collected.partial").replace(work / "collected")
"""
)


@dataclass(frozen=True)
class SoakReport:
    """What came of it."""

    seconds: float
    published: int
    refused: int
    """Pushes that had to be begun anew, three times in a row beaten by a collection."""
    deleted: int
    collections: int
    collected_blobs: int
    collected_bytes: int
    surviving: int
    """Versions that were published and nobody asked to delete."""
    losses: tuple[str, ...]
    """Those of them that are not there."""
    problems: tuple[str, ...]
    """What a check of everything found in the end."""
    resurrected: int
    """Versions that somebody deleted and that are still there."""


def soak(home: Home, work: Path, seconds: float) -> SoakReport:
    """Has all of them at it for so long, and looks at what is left. Raises `AssertionError` if one of them fails."""
    for seed in range(WEIGHTS):
        make_artifact(work / "pool" / str(seed), seed=seed)
    began = time.time()
    common = [str(work)]
    processes = [
        *(python(_PUBLISH, *common, str(number), str(began + seconds), home=home) for number in range(PUBLISHERS)),
        *(
            python(_DELETE, *common, str(number), str(began + seconds), str(DELETERS), str(_KEPT_OF), home=home)
            for number in range(DELETERS)
        ),
        python(_COLLECT, *common, "0", str(began + seconds), home=home),
    ]
    failures = []
    for process in processes:
        _, errors = process.communicate(timeout=seconds + 300)
        if process.returncode:
            (work / "stop").touch()
            failures.append(errors)
    assert not failures, failures[0]
    published, asked = _lines(work, "published"), _lines(work, "deleting")
    collections, blobs, size = json.loads((work / "collected").read_text())
    with closing(EmbeddedRegistry(home)) as registry:
        there = {
            f"{summary.adapter}@{version.digest}"
            for summary in registry.list_adapters()
            for version in registry.list_versions(summary.adapter)
        }
        problems = list(registry.check())[-1].problems
    surviving = set(published) - set(asked)
    return SoakReport(
        seconds=round(time.time() - began, 1),
        published=len(published),
        refused=sum(map(int, _lines(work, "refused"))),
        deleted=len(asked),
        collections=collections,
        collected_blobs=blobs,
        collected_bytes=size,
        surviving=len(surviving),
        losses=tuple(sorted(surviving - there)),
        problems=problems,
        resurrected=len(set(asked) & there),
    )


def _lines(work: Path, prefix: str) -> Sequence[str]:
    return [line for path in sorted(work.glob(f"{prefix}[0-9]*")) for line in path.read_text().splitlines()]


def main() -> int:
    """Prints the report; 1 if anything was lost or half there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="weft-soak-") as directory:
        root = Path(directory)
        (root / "work").mkdir()
        report = soak(Home(root / "home"), root / "work", arguments.seconds)
    print(json.dumps(asdict(report), indent=2))
    return 1 if report.losses or report.problems or report.resurrected else 0


if __name__ == "__main__":
    sys.exit(main())
