"""Moves of aliases as the registry tells them: heard of at once, without being asked for, and without a gap."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from benchmarks.subjects import random_adapter
from tests.registry.lab import serving
from tests.server.registries import Counting, residency
from tests.tiny_models import AddedBase
from weft_registry.api import AliasWatch
from weft_registry.errors import NotFoundError, OffsetError, UnavailableError, UnsupportedError
from weft_registry.reference import AdapterName
from weft_registry.remote.registry import RemoteRegistry
from weft_registry.transfer import push
from weft_server.reload import Reloader
from weft_server.residency import Residency
from weft_server.torch_engine.engine import TorchEngine

NAME = AdapterName("test", "told")
ALIAS = f"{NAME}:production"
FAR_S = 3600.0
"""Between two looks: whatever happens sooner, somebody told."""


@pytest.fixture
def digests(registry: Counting, tiny_base: Callable[..., AddedBase], tmp_path: Path) -> list[str]:
    """Two versions, v0 and v1; production at the first."""
    spec, found = tiny_base().stored.spec, []
    for seed in range(2):
        random_adapter("lora", spec, seed).write(tmp_path / f"told{seed}", spec, str(NAME))
        found.append(push(registry, tmp_path / f"told{seed}", NAME, tags=(f"v{seed}",)).version.digest)
    registry.set_alias(NAME, "production", "v0")
    return found


@asynccontextmanager
async def following(engine: TorchEngine, registry: Any, tmp_path: Path, interval_s: float = FAR_S) -> Any:
    held, resolver = residency(engine, registry, tmp_path, follow=True)
    reloader = Reloader(resolver, held, interval_s)
    run = asyncio.create_task(reloader.run())
    try:
        yield held, reloader
    finally:
        run.cancel()
        await reloader.close()
        await held.close()


async def served(held: Residency, reference: str = ALIAS) -> str:
    lease = await held.lease(reference)
    lease.release()
    return lease.digest


async def comes(held: Residency, digest: str, reference: str = ALIAS) -> None:
    """Returns once requests get this version."""
    async with asyncio.timeout(60):
        while await served(held, reference) != digest:
            await asyncio.sleep(0.01)


async def looked(reloader: Reloader, *references: str) -> None:
    """Returns once each was looked at since it is followed, and nothing is left to look at."""
    async with asyncio.timeout(60):
        while True:
            reloader.poke()
            await asyncio.sleep(0.01)
            followed = {each.reference: each for each in reloader._resolver.followed()}
            asked = [followed[reference] for reference in references]
            if all(each.looked and not each.stale and each.moving is None for each in asked):
                return


async def test_a_move_is_heard_of_at_once(
    engine: TorchEngine, registry: Counting, digests: list[str], tmp_path: Path
) -> None:
    async with following(engine, registry, tmp_path) as (held, _):
        assert await served(held) == digests[0]
        assert await served(held, str(NAME)) == digests[1]
        registry.set_alias(NAME, "production", "v1")
        await comes(held, digests[1])
        registry.rollback_alias(NAME, "production")
        await comes(held, digests[0])
        registry.delete_alias(NAME, "production")
        with pytest.raises(NotFoundError):
            await comes(held, "no digest at all")


async def test_a_served_registry_tells_moves_across_its_own_restart(
    engine: TorchEngine, registry: Counting, digests: list[str], tmp_path: Path
) -> None:
    with serving(registry) as target:
        remote = RemoteRegistry(target)
        context = following(engine, remote, tmp_path)
        held, _ = await context.__aenter__()
        assert await served(held) == digests[0]
        registry.set_alias(NAME, "production", "v1")
        await comes(held, digests[1])
    # While nobody serves it; the stream goes on where it was.
    registry.set_alias(NAME, "production", "v0")
    with serving(registry, port=int(target.rpartition(":")[2])), closing(remote):
        await comes(held, digests[0])
        await context.__aexit__(None, None, None)


async def test_what_is_told_is_not_asked_for_and_what_is_known_neither(
    engine: TorchEngine, registry: Counting, digests: list[str], tmp_path: Path
) -> None:
    async with following(engine, registry, tmp_path) as (held, reloader):
        await served(held)
        await looked(reloader, ALIAS)
        asked = registry.resolved
        for _ in range(5):
            await reloader.check(told=True)
        assert registry.resolved == asked
        registry.set_alias(NAME, "production", "v1")
        await comes(held, digests[1])
        await reloader.settled()
        await looked(reloader, ALIAS)
        asked = registry.resolved
        # Back to a version whose manifest was read: nothing is asked at all.
        registry.set_alias(NAME, "production", "v0")
        await comes(held, digests[0])
        assert registry.resolved <= asked + 1  # The look after the load, which makes sure.


async def test_a_tag_is_asked_for_though_moves_are_told(
    engine: TorchEngine, registry: Counting, digests: list[str], tmp_path: Path
) -> None:
    """It never moves, but its version may be yanked, of which no move tells."""
    async with following(engine, registry, tmp_path) as (held, reloader):
        assert await served(held, f"{NAME}:v1") == digests[1]
        await looked(reloader, f"{NAME}:v1")
        registry.yank(f"{NAME}:v1")
        await reloader.check(told=True)
        with pytest.raises(NotFoundError, match="yanked"):
            await served(held, f"{NAME}:v1")


@pytest.mark.parametrize("error", [UnavailableError("not there"), UnsupportedError("too old"), None])
async def test_without_a_stream_the_registry_is_asked_as_ever(
    error: Exception | None,
    engine: TorchEngine,
    registry: Counting,
    digests: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether it cannot tell, is not there to tell, or has fallen silent."""

    def watch(adapters: Sequence[AdapterName] = (), after: int = 0) -> AliasWatch:
        if error is not None:
            raise error
        return iter(())  # type: ignore[return-value]

    monkeypatch.setattr(registry, "watch_aliases", watch)
    async with following(engine, registry, tmp_path, 0.05) as (held, _):
        assert await served(held) == digests[0]
        registry.set_alias(NAME, "production", "v1")
        await comes(held, digests[1])


async def test_where_moves_may_have_been_missed_everything_is_looked_at(
    engine: TorchEngine, registry: Counting, digests: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = registry.watch_aliases, []

    def watch(adapters: Sequence[AdapterName] = (), after: int = 0) -> AliasWatch:
        calls.append(after)
        if len(calls) == 1:
            raise OffsetError("restored from a backup")
        return whole(adapters, after)

    held, resolver = residency(engine, registry, tmp_path, follow=True)
    assert await served(held) == digests[0]
    registry.set_alias(NAME, "production", "v1")
    monkeypatch.setattr(registry, "watch_aliases", watch)
    reloader = Reloader(resolver, held, FAR_S)
    for followed in resolver.followed():
        followed.looked = True
    run = asyncio.create_task(reloader.run())
    await comes(held, digests[1])
    run.cancel()
    await reloader.close()
    await held.close()
    assert calls[0] == 0
