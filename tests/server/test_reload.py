"""Hot reload: an alias moves, its new version is loaded, and only then do requests go there."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.subjects import random_adapter
from tests.server.registries import Counting, residency, spoil
from tests.tiny_models import AddedBase
from weft_registry.errors import (
    CorruptionError,
    DeadlineError,
    ExhaustedError,
    NotFoundError,
    UnavailableError,
    WeftError,
)
from weft_registry.reference import AdapterName
from weft_registry.transfer import push
from weft_server.reload import Reloader
from weft_server.residency import Residency
from weft_server.torch_engine.engine import TorchEngine

NAME = AdapterName("test", "moving")
ALIAS = "test/moving:production"


class Lab:
    """Two versions of one adapter, an alias at the first, and everything that follows it."""

    def __init__(self, engine: TorchEngine, registry: Counting, tmp_path: Path, digests: list[str]) -> None:
        self.registry = registry
        self.digests = digests
        self.home = tmp_path / "home"
        self._engine, self._tmp_path = engine, tmp_path

    def open(self, limit_bytes: int = 1 << 30, interval_s: float = 5.0) -> tuple[Residency, Reloader]:
        held, resolver = residency(
            self._engine, self.registry, self._tmp_path, limit_bytes=limit_bytes, follow=interval_s > 0
        )
        return held, Reloader(resolver, held, interval_s)

    def move(self, to: int) -> None:
        self.registry.set_alias(NAME, "production", self.digests[to])


@pytest.fixture
def lab(engine: TorchEngine, registry: Counting, tiny_base: Callable[..., AddedBase], tmp_path: Path) -> Lab:
    spec, digests = tiny_base().stored.spec, []
    for seed in (21, 22):
        random_adapter("lora", spec, seed).write(tmp_path / f"moving{seed}", spec, "test/moving")
        digests.append(push(registry, tmp_path / f"moving{seed}", NAME, tags=(f"v{seed}",)).version.digest)
    lab = Lab(engine, registry, tmp_path, digests)
    lab.move(0)
    return lab


async def served(held: Residency, reference: str = ALIAS) -> str:
    """The digest that a request with this reference gets now."""
    lease = await held.lease(reference)
    lease.release()
    return lease.digest


async def test_requests_get_the_new_version_once_it_is_loaded_and_never_wait_for_it(lab: Lab) -> None:
    held, reloader = lab.open()
    running = await held.lease(ALIAS)
    lab.move(1)
    assert await served(held) == lab.digests[0]
    await reloader.check()
    assert await served(held) == lab.digests[0], "the load has only begun"
    await reloader.settled()
    read = lab.registry.blobs_read
    assert await served(held) == lab.digests[1]
    assert lab.registry.blobs_read == read
    assert running.digest == lab.digests[0]
    assert [r.leases for r in held.resident() if r.digest == lab.digests[0]] == [1]
    assert held.recorder.snapshot().reloads == 1
    running.release()


async def test_warm_requests_ask_the_registry_nothing(lab: Lab) -> None:
    held, reloader = lab.open()
    await served(held)
    asked = lab.registry.resolved
    for _ in range(10):
        await served(held)
    assert lab.registry.resolved == asked
    await reloader.check()
    assert lab.registry.resolved == asked + 1


async def test_concurrent_first_requests_ask_once(lab: Lab) -> None:
    held, _ = lab.open()
    assert set(await asyncio.gather(*(served(held) for _ in range(16)))) == {lab.digests[0]}
    assert lab.registry.resolved == 1


async def test_without_following_every_request_asks(lab: Lab) -> None:
    held, reloader = lab.open(interval_s=0)
    assert await served(held) == lab.digests[0]
    lab.move(1)
    assert await served(held) == lab.digests[1]
    await reloader.run()  # There is nothing to look after: it returns.


async def test_tags_and_digests_stay_where_they_are(lab: Lab) -> None:
    held, reloader = lab.open()
    references = {f"{NAME}:v21": lab.digests[0], f"{NAME}@{lab.digests[0]}": lab.digests[0], str(NAME): lab.digests[1]}
    lab.move(1)
    await reloader.check()
    await reloader.settled()
    for reference, digest in references.items():
        assert await served(held, reference) == digest


async def test_a_version_that_cannot_be_loaded_never_replaces_one_that_can(lab: Lab) -> None:
    held, reloader = lab.open()
    await served(held)
    blob, good = spoil(lab.home, lab.registry.resolve(f"{NAME}:v22"))
    lab.move(1)
    await reloader.check()
    await reloader.settled()
    assert await served(held) == lab.digests[0]
    (resident,) = held.resident()
    assert lab.digests[1] in resident.reload_problem
    assert "digest" in resident.reload_problem
    # It is not tried again at every look, and a request for it by digest hears the reason itself.
    read = lab.registry.blobs_read
    await reloader.check()
    await reloader.settled()
    assert lab.registry.blobs_read == read
    with pytest.raises(CorruptionError):
        await served(held, f"{NAME}@{lab.digests[1]}")
    blob.write_bytes(good)
    lab.move(0)
    await reloader.check()
    assert held.resident()[0].reload_problem == ""
    lab.move(1)
    await reloader.check()
    await reloader.settled()
    assert await served(held) == lab.digests[1]


async def test_a_registry_that_is_away_stops_nobody_who_is_served(lab: Lab) -> None:
    held, reloader = lab.open()
    await served(held)
    lab.registry.reachable = False
    await reloader.check()
    assert await served(held) == lab.digests[0]
    assert "the registry is not there" in held.resident()[0].reload_problem
    lab.registry.reachable = True
    await reloader.check()
    assert held.resident()[0].reload_problem == ""


@pytest.mark.parametrize("error", [UnavailableError, DeadlineError])
async def test_a_reference_that_the_registry_does_not_answer_for_delays_no_other(
    lab: Lab, error: type[WeftError]
) -> None:
    held, reloader = lab.open()
    await served(held, "test/a0")
    await served(held)
    lab.registry.silent["test/a0"] = error("not this one")
    lab.move(1)
    await reloader.check()
    await reloader.settled()
    assert await served(held) == lab.digests[1]
    problems = {resident.digest: resident.reload_problem for resident in held.resident()}
    assert "not this one" in problems[await served(held, "test/a0")]
    assert problems[lab.digests[1]] == ""


@pytest.mark.parametrize("error", [UnavailableError, DeadlineError])
async def test_a_registry_that_is_away_is_asked_twice_in_a_round_and_not_for_every_reference(
    lab: Lab, error: type[WeftError]
) -> None:
    held, reloader = lab.open()
    references = ["test/a0", "test/a1", "test/a2", ALIAS]
    for reference in references:
        await served(held, reference)
        lab.registry.silent[reference] = error("away")
    asked = lab.registry.resolved
    await reloader.check()
    assert lab.registry.resolved == asked + 2
    assert all("away" in resident.reload_problem for resident in held.resident())


async def test_references_that_never_get_an_answer_do_not_keep_the_others_from_theirs(lab: Lab) -> None:
    held, reloader = lab.open()
    for reference in ("test/a0", "test/a1", ALIAS):
        await served(held, reference)
    for reference in ("test/a0", "test/a1"):
        lab.registry.silent[reference] = UnavailableError("not this one")
    lab.move(1)
    for _ in range(2):
        await reloader.check()
        await reloader.settled()
    assert await served(held) == lab.digests[1]


async def test_what_is_yanked_is_refused_from_the_next_look_on(lab: Lab) -> None:
    held, reloader = lab.open()
    assert await served(held, f"{NAME}:v22") == lab.digests[1]
    lab.registry.yank(f"{NAME}:v22", "wrong labels")
    await reloader.check()
    with pytest.raises(NotFoundError, match="wrong labels"):
        await served(held, f"{NAME}:v22")


async def test_without_room_for_both_a_version_in_use_stays_and_an_idle_one_gives_way(lab: Lab) -> None:
    size = (await lab.open()[0].load(ALIAS)).size_bytes
    held, reloader = lab.open(limit_bytes=size + size // 2)
    running = await held.lease(ALIAS)
    lab.move(1)
    await reloader.check()
    await reloader.settled()
    assert await served(held) == lab.digests[0]
    assert "--adapter-memory" in held.resident()[0].reload_problem
    with pytest.raises(ExhaustedError):
        await held.lease(f"{NAME}@{lab.digests[1]}")
    running.release()
    lab.move(0)
    await reloader.check()
    lab.move(1)
    await reloader.check()
    await reloader.settled()
    assert await served(held) == lab.digests[1]
    assert [r.digest for r in held.resident()] == [lab.digests[1]]


async def test_a_poke_is_looked_after_at_once_and_closing_gives_up_what_is_under_way(lab: Lab) -> None:
    held, reloader = lab.open(interval_s=3600)
    await served(held)
    lab.move(1)
    run = asyncio.create_task(reloader.run())
    reloader.poke()
    while await served(held) != lab.digests[1]:
        await asyncio.sleep(0.01)
    run.cancel()
    lab.move(0)
    await held.unload(f"{NAME}@{lab.digests[0]}")
    await reloader.check()
    await reloader.close()
    assert await served(held) == lab.digests[1]
    await held.close()
