"""A real server under load, in this process to be looked into: no lease leaks, no reload fails a request."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.subjects import random_adapter
from tests.server.homes import KINDS, prepare
from tests.tiny_models import AddedBase
from weft_client import AsyncInferenceClient, RegistryClient
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import DeadlineError, ExhaustedError, NotFoundError, WeftError
from weft_registry.home import Home
from weft_registry.reference import AdapterName
from weft_registry.transfer import push
from weft_server.options import ServeOptions
from weft_server.serving import Running, running

MOVING = AdapterName("test", "moving")


class Live(NamedTuple):
    """A server in this process, and a client of it."""

    server: Running
    client: AsyncInferenceClient
    digests: list[str]


@pytest.fixture
async def live(tiny_base: Callable[..., AddedBase], tmp_path: Path) -> AsyncIterator[Live]:
    base, home = tiny_base(), Home(tmp_path / "home")
    prepare(home, base)
    registry, digests = EmbeddedRegistry(home), []
    for seed in (11, 12):
        random_adapter("lora", base.stored.spec, seed, strength=0.3).write(
            tmp_path / str(seed), base.stored.spec, str(MOVING)
        )
        digests.append(push(registry, tmp_path / str(seed), MOVING).version.digest)
    registry.set_alias(MOVING, "live", digests[0])
    registry.close()
    options = ServeOptions(base.name, port=0, dtype="float32", grace_s=0, home=home, max_waiting=16, max_batch_size=4)
    async with running(options) as server, AsyncInferenceClient(server.address, timeout_s=120) as client:
        yield Live(server, client, digests)


async def test_no_request_fails_while_an_alias_moves_back_and_forth(live: Live) -> None:
    moves = 12
    stop = False
    seen: list[str] = []

    async def ask() -> None:
        while not stop:
            done = await live.client.generate("fox", f"{MOVING}:live", max_new_tokens=6, ignore_eos=True)
            assert done.generated_tokens == 6
            seen.append(done.adapter_digest)

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(ask())
        with RegistryClient(live.server.address) as registry:
            for move in range(moves):
                wanted = live.digests[(move + 1) % 2]
                if move % 3 == 0:  # Now and then the version has left memory and has to come in again.
                    live.server.residency.evict_idle()
                await asyncio.to_thread(registry.set_alias, MOVING, "live", wanted)
                begin = len(seen)
                while wanted not in seen[begin:]:
                    await asyncio.sleep(0.01)
        stop = True
    assert set(seen) == set(live.digests)
    assert live.server.residency.recorder.snapshot().reloads == moves
    # After the last move everybody gets the version that it went to.
    final = await live.client.generate("fox", f"{MOVING}:live", max_new_tokens=2)
    assert final.adapter_digest == live.digests[moves % 2]
    assert all(resident.leases == 0 for resident in live.server.residency.resident())


async def test_whatever_callers_do_every_lease_comes_back(live: Live) -> None:
    chance = random.Random(7)
    residency = live.server.residency
    references = ["", *(f"test/{kind}" for kind in KINDS), f"{MOVING}:live", "test/gone", f"{MOVING}@{live.digests[1]}"]

    async def read(chunks: int, reference: str, timeout_s: float) -> None:
        stream = live.client.stream("fox", reference, max_new_tokens=30, ignore_eos=True, timeout_s=timeout_s)
        async with aclosing(stream):
            async for _ in stream:
                chunks -= 1
                if not chunks:
                    return

    async def one(number: int) -> str:
        reference = chance.choice(references)
        # A deadline, a cancel and a stop reading each come at whatever stage the request is in by then.
        timeout_s = chance.choice([0.001, 0.01, 0.05, 60.0])
        call = asyncio.create_task(read(chance.choice([1, 5, 1000]), reference, timeout_s))
        if chance.random() < 0.4:
            for _ in range(chance.randrange(40)):
                await asyncio.sleep(0)
            call.cancel()
        try:
            await call
            return "done"
        except (DeadlineError, ExhaustedError, NotFoundError, asyncio.CancelledError) as error:
            return type(error).__name__
        finally:
            if number % 10 == 0:  # So that cold loads are under way while others come and go.
                residency.evict_idle()

    outcomes = []
    for begin in range(0, 300, 30):
        outcomes += await asyncio.gather(*(one(number) for number in range(begin, begin + 30)))
    assert {"done", "DeadlineError", "CancelledError", "NotFoundError"} <= set(outcomes)
    await residency.settled()
    await live.server.bridge.drained()
    await no_calls(live)
    assert live.server.bridge.running_count == 0
    assert [resident.reference for resident in residency.resident() if resident.leases] == []
    assert (await live.client.generate("fox", "test/lora", max_new_tokens=3, ignore_eos=True)).generated_tokens == 3
    residency.evict_idle()
    assert residency.resident_bytes == 0


async def test_an_adapter_is_preloaded_before_the_server_is_ready_or_it_does_not_start(
    tiny_base: Callable[..., AddedBase], tmp_path: Path
) -> None:
    base, home = tiny_base(), Home(tmp_path / "home")
    prepare(home, base)
    options = ServeOptions(base.name, port=0, grace_s=0, home=home, preload=("test/lora", "test/prefix:production"))
    async with running(options) as server:
        assert {r.reference for r in server.residency.resident()} == set(options.preload)
    with pytest.raises(WeftError, match=r"--preload test/lorra: no adapter test/lorra; nearest: test/lora"):
        async with running(ServeOptions(base.name, port=0, home=home, preload=("test/lorra",))):
            pytest.fail("it started")


async def no_calls(live: Live) -> None:
    """Waits until the server has ended what its clients gave up: it hears of that in its own time."""
    while any(resident.leases for resident in live.server.residency.resident()) or live.server.bridge.running_count:
        await asyncio.sleep(0.01)
