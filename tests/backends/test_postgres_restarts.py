"""PostgreSQL killed again and again under publishers and readers: nothing acknowledged is lost, and nothing is half."""

from __future__ import annotations

import threading
import time
import uuid
from pathlib import Path

from tests.backends.servers import Postgres
from tests.registry.lab import make_artifact, upload_all
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import NotFoundError, UnavailableError
from weft_registry.home import Home
from weft_registry.reference import AdapterName
from weft_registry.storage import Storage

PUBLISHERS, PUBLISHES, RESTARTS = 3, 8, 4


def test_restarts_under_load_lose_no_acknowledged_publish(postgres: Postgres, place: str, tmp_path: Path) -> None:
    storage = Storage(postgres.url, place)
    artifacts = [make_artifact(tmp_path / f"artifact{seed}", seed=seed) for seed in range(PUBLISHES)]
    registries = [EmbeddedRegistry(Home(tmp_path / f"home{i}"), None, storage) for i in range(PUBLISHERS + 1)]
    acknowledged: list[list[str]] = [[] for _ in range(PUBLISHERS)]
    unavailable = 0
    wrong: list[BaseException] = []
    done = threading.Event()

    def publish(index: int) -> None:
        """Each version under a request id, asked again with the same one until it is answered, as clients should."""
        nonlocal unavailable
        name = AdapterName("team", f"adapter{index}")
        try:
            for directory in artifacts:
                request_id, deadline = str(uuid.uuid4()), time.monotonic() + 60.0
                while True:
                    try:
                        manifest = upload_all(registries[index], directory)
                        version = registries[index].publish(name, manifest, request_id=request_id).version
                        break
                    except UnavailableError as error:
                        if time.monotonic() > deadline or not error.retry_after_s:
                            raise
                        unavailable += 1
                        time.sleep(0.05)
                acknowledged[index].append(version.digest)
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            wrong.append(error)

    def resolve() -> None:
        nonlocal unavailable
        try:
            while not done.is_set():
                try:
                    registries[PUBLISHERS].resolve("team/adapter0")
                except NotFoundError:
                    pass
                except UnavailableError:
                    unavailable += 1
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            wrong.append(error)

    publishers = [threading.Thread(target=publish, args=(index,)) for index in range(PUBLISHERS)]
    reader = threading.Thread(target=resolve)
    for thread in (*publishers, reader):
        thread.start()
    for _ in range(RESTARTS):
        time.sleep(0.3)
        postgres.restart()
    for thread in publishers:
        thread.join(120)
    done.set()
    reader.join(60)
    assert wrong == []
    assert not any(thread.is_alive() for thread in (*publishers, reader))
    fresh = EmbeddedRegistry(Home(tmp_path / "fresh"), None, storage)
    for index in range(PUBLISHERS):
        name = AdapterName("team", f"adapter{index}")
        # Each once, in the order of the publishes: no half, no double, none lost.
        assert [version.digest for version in reversed(fresh.list_versions(name))] == acknowledged[index]
        for digest in acknowledged[index]:
            assert fresh.verify(f"{name}@{digest}").problems == ()
        assert fresh.resolve(str(name)).digest == acknowledged[index][-1]
    for registry in (*registries, fresh):
        registry.close()
