"""Adapters in memory: shared loads, leases, eviction and its limits; on a real registry and a real engine."""

import asyncio
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.subjects import RandomAdapter, random_adapter
from tests.server import registries
from tests.server.registries import Counting
from tests.tiny_models import AddedBase
from weft_adapters.binding import WEIGHTS_FILE, bind
from weft_registry import artifact
from weft_registry.api import RegistryApi
from weft_registry.composition import Part, parse_parts
from weft_registry.errors import (
    CorruptionError,
    ExhaustedError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
)
from weft_server.residency import Residency
from weft_server.residents import Tier
from weft_server.torch_engine.engine import TorchEngine


def residency(engine: TorchEngine, registry: RegistryApi, tmp_path: Path, **options: int) -> Residency:
    return registries.residency(engine, registry, tmp_path, **options)[0]


def resident(of: Residency) -> list[str]:
    return [r.reference for r in of.resident()]


async def test_concurrent_first_requests_share_one_load(
    engine: TorchEngine, registry: Counting, tmp_path: Path
) -> None:
    held = residency(engine, registry, tmp_path)
    leases = await asyncio.gather(*(held.lease("test/a0") for _ in range(16)))
    files = len(registry.resolve("test/a0").manifest.files)
    assert registry.blobs_read == files
    assert len({id(lease.handle) for lease in leases}) == 1
    assert held.resident()[0].leases == 16
    for lease in leases:
        lease.release()
        lease.release()
    assert held.resident()[0].leases == 0


async def test_the_least_recently_used_goes_first_and_comes_back_without_the_registry_sending_it(
    engine: TorchEngine, registry: Counting, tmp_path: Path
) -> None:
    size = registry.resolve("test/a0").size_bytes
    held = residency(engine, registry, tmp_path, limit_bytes=2 * size + size // 2)
    for name in ("a0", "a1"):
        (await held.lease(f"test/{name}")).release()
    (await held.lease("test/a0")).release()
    (await held.lease("test/a2")).release()
    assert resident(held) == ["test/a2", "test/a0"]
    assert held.resident_bytes <= held.limit_bytes
    read = registry.blobs_read
    (await held.lease("test/a1")).release()
    assert registry.blobs_read == read


async def test_adapters_worn_together_are_made_once_and_stand_by_themselves(
    engine: TorchEngine, registry: Counting, tmp_path: Path
) -> None:
    held = residency(engine, registry, tmp_path)
    parts = (Part("test/a0", 0.5), Part("test/a1"))
    leases = await asyncio.gather(*(held.lease_composed(parts) for _ in range(8)))
    assert len({id(lease.handle) for lease in leases}) == 1
    assert leases[0].parts == tuple(registry.resolve(f"test/{name}").digest for name in ("a0", "a1"))
    assert {r.reference: r.leases for r in held.resident()} == {"test/a0*0.5+test/a1": 8, "test/a0": 0, "test/a1": 0}
    # What it was made of may go; it may go and come again.
    assert await held.unload("test/a0") > 0
    for lease in leases:
        lease.release()
    held.evict_idle()
    assert resident(held) == []
    again = await held.lease_composed(parts)
    assert again.digest == leases[0].digest
    again.release()
    alone = await held.lease_composed((Part("test/a0"),))
    assert alone.digest == registry.resolve("test/a0").digest
    alone.release()


async def test_a_part_that_fails_frees_the_others(engine: TorchEngine, registry: Counting, tmp_path: Path) -> None:
    held = residency(engine, registry, tmp_path)
    with pytest.raises(NotFoundError):
        await held.lease_composed((Part("test/a0"), Part("test/none"), Part("test/a1", 2.0)))
    assert resident(held) == []
    size = registry.resolve("test/a0").size_bytes
    narrow = residency(engine, registry, tmp_path, limit_bytes=size + size // 2)
    with pytest.raises(ExhaustedError):
        await narrow.lease_composed((Part("test/a0"), Part("test/a1", 2.0)))
    assert {r.leases for r in narrow.resident()} <= {0}


async def test_a_composition_that_is_held_needs_its_parts_no_more(
    engine: TorchEngine, registry: Counting, tmp_path: Path
) -> None:
    held = residency(engine, registry, tmp_path)
    composed = "test/a0*0.5+test/a1"
    loaded = await held.load(composed)
    assert (loaded.reference, loaded.kind, loaded.leases, loaded.served) == (composed, "composed", 0, 0)
    for part in ("test/a0", "test/a1"):
        await held.unload(part)
    lease = await held.lease_composed(parse_parts(composed))
    assert resident(held) == [composed]
    assert lease.parts == tuple(registry.resolve(name).digest for name in ("test/a0", "test/a1"))
    with pytest.raises(PreconditionError, match="used by 1 running"):
        await held.unload(composed)
    lease.release()
    assert [r.served for r in held.resident()] == [1]
    assert await held.unload(composed) == loaded.size_bytes
    with pytest.raises(NotFoundError, match="not in memory"):
        await held.unload(composed)


@pytest.mark.parametrize("reference", ["test/a0+test/a1", "test/a0*0.5"])
async def test_a_composition_is_merged_and_unmerged_like_an_adapter(
    reference: str, engine: TorchEngine, registry: Counting, tmp_path: Path
) -> None:
    held = residency(engine, registry, tmp_path)
    digest, outcome = await held.merge(reference)
    assert outcome.overlay_bytes > 0
    assert [(r.reference, r.digest) for r in held.resident() if r.merged] == [(reference, digest)]
    lease = await held.lease_composed(parse_parts(reference))
    assert lease.digest == digest
    lease.release()
    with pytest.raises(PreconditionError, match="unmerge it first"):
        await held.unload(reference)
    held.evict_idle()
    assert resident(held) == [reference]
    assert (await held.unmerge())[0] == digest
    assert await held.unload(reference) > 0


@pytest.mark.parametrize("reference", ["test/a0+", "+test/a0", "test/a0*", "test/a0*nan", "test/a0*x", "", "-"])
async def test_what_is_no_reference_is_neither_loaded_merged_nor_unloaded(
    reference: str, engine: TorchEngine, registry: Counting, tmp_path: Path
) -> None:
    held = residency(engine, registry, tmp_path)
    for act in (held.load, held.merge, held.unload):
        with pytest.raises(InvalidInputError):
            await act(reference)
    assert resident(held) == []


async def test_what_is_leased_or_merged_is_never_evicted(
    engine: TorchEngine, registry: Counting, tmp_path: Path
) -> None:
    size = registry.resolve("test/a0").size_bytes
    held = residency(engine, registry, tmp_path, limit_bytes=2 * size + size // 2)
    lease = await held.lease("test/a0")
    await held.merge("test/a1")
    with pytest.raises(ExhaustedError, match="--adapter-memory") as caught:
        await held.lease("test/a2")
    assert caught.value.retry_after_s
    assert sorted(resident(held)) == ["test/a0", "test/a1"]
    with pytest.raises(PreconditionError, match="used by 1 running"):
        await held.unload("test/a0")
    with pytest.raises(PreconditionError, match="unmerge it first"):
        await held.unload("test/a1")
    lease.release()
    (await held.lease("test/a2")).release()
    assert sorted(resident(held)) == ["test/a1", "test/a2"]
    await held.unmerge()
    assert await held.unload("test/a1") > 0
    with pytest.raises(NotFoundError, match="not in memory"):
        await held.unload("test/a1")


async def test_a_load_that_fails_leaves_nothing_and_the_next_request_tries_again(
    engine: TorchEngine, registry: Counting, tmp_path: Path
) -> None:
    held = residency(engine, registry, tmp_path)
    blob, good = registries.spoil(tmp_path / "home", registry.resolve("test/a0"))
    with pytest.raises(CorruptionError):
        await held.lease("test/a0")
    assert resident(held) == []
    assert held.resident_bytes == 0
    blob.write_bytes(good)
    (await held.lease("test/a0")).release()
    assert resident(held) == ["test/a0"]


async def test_a_pulled_file_that_was_tampered_with_is_fetched_again(
    engine: TorchEngine, registry: Counting, tmp_path: Path
) -> None:
    held = residency(engine, registry, tmp_path)
    lease = await held.lease("test/a0")
    expected = {name: tensor.clone() for name, tensor in lease.handle.tensors.items()}  # type: ignore[attr-defined]
    lease.release()
    await held.unload("test/a0")
    file = next((tmp_path / "pulled").rglob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.chmod(0o600)
    file.write_bytes(content)
    again = await held.lease("test/a0")
    assert all(torch.equal(again.handle.tensors[name], t) for name, t in expected.items())  # type: ignore[attr-defined]
    again.release()


async def test_a_digest_in_memory_needs_no_registry(engine: TorchEngine, registry: Counting, tmp_path: Path) -> None:
    held = residency(engine, registry, tmp_path)
    digest = registry.resolve("test/a0").digest
    (await held.lease(f"test/a0@{digest}")).release()
    asked = registry.resolved
    (await held.lease(f"test/a0@{digest}")).release()
    assert registry.resolved == asked
    shutil.rmtree(tmp_path / "pulled")
    (await held.lease(f"test/a0@{digest}")).release()


async def test_a_caller_that_goes_away_during_the_load_gives_its_lease_back(
    engine: TorchEngine, registry: Counting, tmp_path: Path
) -> None:
    held = residency(engine, registry, tmp_path)
    going = asyncio.create_task(held.lease("test/a0"))
    staying = asyncio.create_task(held.lease("test/a0"))
    await asyncio.sleep(0)
    going.cancel()
    lease = await staying
    with pytest.raises(asyncio.CancelledError):
        await going
    assert held.resident()[0].leases == 1
    lease.release()
    assert held.resident()[0].leases == 0


async def test_resident_bytes_are_the_tensors_bytes(engine: TorchEngine, registry: Counting, tmp_path: Path) -> None:
    held = residency(engine, registry, tmp_path)
    found = await held.load("test/p")
    tensors = registry.resolve("test/p").manifest.tensors
    assert found.size_bytes == sum(4 * t.shape[0] * t.shape[1] for t in tensors) == held.resident_bytes
    assert found.kind == "prefix"
    assert found.served == 0


async def test_what_can_never_fit_says_so_and_evicts_nobody(
    engine: TorchEngine, registry: Counting, tmp_path: Path
) -> None:
    size = registry.resolve("test/p").size_bytes
    assert size < registry.resolve("test/a0").size_bytes // 2
    held = residency(engine, registry, tmp_path, limit_bytes=2 * size)
    await held.load("test/p")
    with pytest.raises(ExhaustedError, match=f"the limit for all adapters in memory together is {2 * size}") as caught:
        await held.lease("test/a0")
    assert caught.value.retry_after_s is None
    assert resident(held) == ["test/p"]


async def test_what_was_evicted_is_listed_as_on_disk(engine: TorchEngine, registry: Counting, tmp_path: Path) -> None:
    held = residency(engine, registry, tmp_path)
    in_memory = await held.load("test/a0")
    assert in_memory.tier is Tier.HOST
    assert await held.on_disk() == []
    await held.unload("test/a0")
    (on_disk,) = await held.on_disk()
    assert (on_disk.digest, on_disk.kind, on_disk.tier) == (in_memory.digest, "lora", Tier.DISK)
    assert on_disk.size_bytes >= registry.resolve("test/a0").size_bytes


async def test_no_part_of_a_load_runs_in_the_event_loop_or_in_parallel(
    engine: TorchEngine, registry: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, tuple[int, int]] = {}

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            seen[name] = (threading.get_ident(), torch.get_num_threads())
            return function(*args, **keywords)

        return call

    monkeypatch.setattr(registry, "resolve", watched("resolve", registry.resolve))
    monkeypatch.setattr(registry, "read_blob", watched("read", registry.read_blob))
    monkeypatch.setattr("weft_server.torch_engine.engine.bind", watched("bind", bind))
    await residency(engine, registry, tmp_path).load("test/a0")
    assert set(seen) == {"resolve", "read", "bind"}
    assert threading.get_ident() not in {thread for thread, _ in seen.values()}
    # A second team of OpenMP's threads would slow down every step from then on.
    assert seen["bind"][1] == 1


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["lora", "qalora", "prefix"])
def test_in_the_default_dtype_a_bound_adapter_takes_at_most_what_its_file_does(
    kind: str, stored: torch.dtype, tiny_base: Callable[..., AddedBase], tmp_path: Path
) -> None:
    spec = tiny_base().stored.spec
    made = random_adapter(kind, spec, 0)
    made = RandomAdapter(kind, made.params, {name: tensor.to(stored) for name, tensor in made.tensors.items()})
    made.write(tmp_path / "it", spec, "test/it")
    bound = bind(tmp_path / "it", artifact.read(tmp_path / "it"), spec, dtype=torch.bfloat16)
    # Storages, not tensors: a view may keep a whole file in memory.
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in bound.tensors.values()}
    assert sum(storages.values()) <= 1.1 * (tmp_path / "it" / WEIGHTS_FILE).stat().st_size
    assert bound.size_bytes <= 1.1 * (tmp_path / "it" / WEIGHTS_FILE).stat().st_size
