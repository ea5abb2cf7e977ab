"""Many publishers of overlapping blobs at once: each blob stored once, each version right."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.registry.lab import python
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.reference import AdapterName

NAME = AdapterName("team", "support")
PROCESSES, THREADS, WEIGHTS = 8, 8, 16
# All threads of a process use one registry; each publishes one artifact as soon as all of them are ready.
SCRIPT = """
import json, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from weft_registry import transfer
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.reference import AdapterName

registry = EmbeddedRegistry(Home.from_environment())
directories = sys.argv[1:]
ready = threading.Barrier(len(directories))

def publish(directory):
    ready.wait()
    published = transfer.push(registry, Path(directory), AdapterName("team", "support"))
    return [published.version.digest, published.existing]

with ThreadPoolExecutor(len(directories)) as pool:
    print(json.dumps(list(pool.map(publish, directories))))
registry.close()
"""


def test_64_publishers_of_overlapping_blobs_store_each_once_and_each_version_whole(
    home: Home, new_artifact: Callable[..., Path]
) -> None:
    # 16 weights shared by four publishers each, one configuration shared by all; every second card is shared by two,
    # so that 16 pairs of publishers publish the very same version.
    made = {}
    for publisher in range(PROCESSES * THREADS):
        seed, card = publisher % WEIGHTS, publisher // WEIGHTS
        key = (seed, card - card % 2 if seed % 2 else card)
        if key not in made:
            made[key] = new_artifact(seed=seed, readme=f"Card {key[1]}.\n")
    of_publisher = [
        made[p % WEIGHTS, (p // WEIGHTS) - (p // WEIGHTS) % 2 if p % WEIGHTS % 2 else p // WEIGHTS]
        for p in range(PROCESSES * THREADS)
    ]
    processes = [python(SCRIPT, *map(str, of_publisher[process::PROCESSES]), home=home) for process in range(PROCESSES)]
    answers: list[tuple[str, bool]] = []
    for process in processes:
        out, errors = process.communicate(timeout=240)
        assert (process.returncode, errors) == (0, "")
        answers += [(digest, existing) for digest, existing in json.loads(out)]

    assert len(answers) == PROCESSES * THREADS
    assert len({digest for digest, _ in answers}) == len(made) == 48
    # The same version published by two is new to exactly one of them.
    assert Counter(existing for _, existing in answers) == {False: 48, True: 16}
    registry = EmbeddedRegistry(home)
    versions = registry.list_versions(NAME)
    assert {version.digest for version in versions} == {digest for digest, _ in answers}
    assert list(registry.check())[-1].problems == ()
    # Each blob once, and nothing beside them: no temporaries, no uploads.
    wanted = {file.sha256 for version in versions for file in version.manifest.files}
    stored = [blob.digest for blob in registry.blobs.list_blobs()]
    assert sorted(stored) == sorted(wanted)
    assert len(wanted) == WEIGHTS + 1 + 4
    registry.close()
    left = [path for folder in ("uploads", "tmp") for path in (home.registry / folder).iterdir()]
    assert left == []
