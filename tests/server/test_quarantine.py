"""An adapter whose numbers stop being finite: its own requests hear of it, nobody else does, and a person lifts it."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.subjects import RandomAdapter, random_adapter
from tests.server.homes import prepare
from tests.tiny_models import AddedBase
from weft_client import AsyncInferenceClient
from weft_registry import errors
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.reference import AdapterName
from weft_registry.transfer import push
from weft_server.options import ServeOptions
from weft_server.quarantine import Quarantine
from weft_server.serving import Running, running

REFERENCE = "test/overflowing"


class Live(NamedTuple):
    """A server in this process, and a client of it."""

    server: Running
    client: AsyncInferenceClient
    digest: str


def overflowing(base: AddedBase) -> RandomAdapter:
    """Every weight is finite, as validation demands; what they compute is not."""
    made = random_adapter("lora", base.stored.spec, 0)
    return RandomAdapter("lora", made.params, {name: tensor * 1e32 for name, tensor in made.tensors.items()})


@pytest.fixture
async def live(tiny_base: Callable[..., AddedBase], tmp_path: Path) -> AsyncIterator[Live]:
    base, home = tiny_base(), Home(tmp_path / "home")
    prepare(home, base)
    overflowing(base).write(tmp_path / "it", base.stored.spec, REFERENCE)
    registry = EmbeddedRegistry(home)
    digest = push(registry, tmp_path / "it", AdapterName.parse(REFERENCE)).version.digest
    random_adapter("bottleneck", base.stored.spec, 3).write(tmp_path / "net", base.stored.spec, "test/net")
    push(registry, tmp_path / "net", AdapterName.parse("test/net"))
    registry.close()
    options = ServeOptions(base.name, port=0, dtype="float32", grace_s=0, home=home)
    async with running(options) as server, AsyncInferenceClient(server.address, timeout_s=60) as client:
        yield Live(server, client, digest)


async def test_requests_are_refused_with_the_reason_until_it_is_unloaded(live: Live) -> None:
    expected = await live.client.generate("fox", "test/lora", max_new_tokens=8, ignore_eos=True)
    with pytest.raises(errors.WeftError) as first:
        await live.client.generate("fox", REFERENCE, max_new_tokens=8)
    assert first.value.reason == "NOT_FINITE"
    for reference in (REFERENCE, f"{REFERENCE}@{live.digest}"):
        with pytest.raises(errors.PreconditionError, match=f"{live.digest}.*quarantine since.*not finite") as caught:
            await live.client.generate("fox", reference, max_new_tokens=8)
        assert caught.value.reason == "QUARANTINED"
        assert caught.value.metadata["digest"] == live.digest
        assert f"weft unload {reference}" in caught.value.message
    listed = {r.digest: r.quarantined for r in (await live.client.resident()).adapters}
    assert "not finite" in listed[live.digest]
    assert [bool(text) for text in listed.values()].count(True) == 1
    again = await live.client.generate("fox", "test/lora", max_new_tokens=8, ignore_eos=True)
    assert again.text == expected.text
    assert await live.client.unload(REFERENCE) > 0
    assert (await live.client.load(REFERENCE)).quarantined == ""
    with pytest.raises(errors.WeftError) as once_more:
        await live.client.generate("fox", REFERENCE, max_new_tokens=8)
    assert once_more.value.reason == "NOT_FINITE"


async def test_it_is_unmerged(live: Live) -> None:
    assert (await live.client.merge(REFERENCE)).adapter_digest == live.digest
    with pytest.raises(errors.WeftError):
        await live.client.generate("fox", REFERENCE, max_new_tokens=8)
    # Merging waits for whatever switch is under way, and is refused.
    with pytest.raises(errors.PreconditionError, match="quarantine"):
        await live.client.merge(REFERENCE)
    await live.server.residency.settled()
    assert live.server.engine.merged is None
    assert (await live.client.generate("fox", "test/lora", max_new_tokens=8)).generated_tokens > 0


async def test_it_stays_listed_and_refused_after_it_left_memory(live: Live) -> None:
    with pytest.raises(errors.WeftError):
        await live.client.generate("fox", REFERENCE, max_new_tokens=8)
    residency = live.server.residency
    (entry,) = [r for r in residency.resident() if r.digest == live.digest]
    residency.evict_idle()
    assert not residency.is_resident(entry.digest)
    (listed,) = (await live.client.resident()).adapters
    assert (listed.digest, listed.tier, listed.resident_bytes) == (live.digest, "disk", 0)
    with pytest.raises(errors.PreconditionError, match="quarantine"):
        await live.client.generate("fox", REFERENCE, max_new_tokens=8)
    assert await live.client.unload(REFERENCE) == 0
    assert (await live.client.resident()).adapters == ()


@pytest.mark.parametrize(
    "worn", ["test/lora*1e-36+test/overflowing", "test/lora*1e35", "test/net*1e30", "test/net+test/net*1e30"]
)
async def test_weights_that_make_numbers_not_finite_are_the_requests_own_fault(live: Live, worn: str) -> None:
    for _ in range(2):
        with pytest.raises(errors.InvalidInputError, match="smaller weights") as caught:
            await live.client.generate("fox", worn, max_new_tokens=8)
        assert caught.value.reason == "NOT_FINITE"
        assert worn in caught.value.message
    assert all(not resident.quarantined for resident in (await live.client.resident()).adapters)
    for reference in ("test/lora", "test/net"):
        assert (await live.client.generate("fox", reference, max_new_tokens=2, ignore_eos=True)).generated_tokens == 2


def test_the_first_reason_stays() -> None:
    quarantine = Quarantine()
    assert quarantine.add("sha256:1", "a/b", "lora", "first")
    assert not quarantine.add("sha256:1", "a/b", "lora", "second")
    with pytest.raises(errors.PreconditionError, match="first"):
        quarantine.check("sha256:1", "a/b")
    assert quarantine.lift("sha256:1")
    assert not quarantine.lift("sha256:1")
    quarantine.check("sha256:1", "a/b")
