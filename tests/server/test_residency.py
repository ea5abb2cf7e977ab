"""Adapters in memory: shared loads, leases, eviction and its limits; on a real registry and a real engine."""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.subjects import random_adapter
from tests.tiny_models import AddedBase
from weft_registry.api import RegistryApi, Version
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import CorruptionError, ExhaustedError, NotFoundError, PreconditionError
from weft_registry.home import Home
from weft_registry.reference import AdapterName
from weft_registry.transfer import push
from weft_server.residency import Residency
from weft_server.torch_engine.engine import TorchEngine, TorchEngineOptions


class Counting(EmbeddedRegistry):
    """A registry that counts what is asked of it."""

    def __init__(self, home: Home) -> None:
        super().__init__(home)
        self.blobs_read = 0
        self.resolved = 0

    def read_blob(self, digest: str, offset: int = 0, limit: int = 0) -> Iterator[bytes]:
        self.blobs_read += 1
        return super().read_blob(digest, offset, limit)

    def resolve(self, reference: str) -> Version:
        self.resolved += 1
        return super().resolve(reference)


@pytest.fixture
def registry(tiny_base: Callable[..., AddedBase], tmp_path: Path) -> Iterator[Counting]:
    """Three LoRA adapters, test/a0 to test/a2, and a prefix, test/p."""
    spec = tiny_base().stored.spec
    registry = Counting(Home(tmp_path / "home"))
    for seed, name in enumerate(("a0", "a1", "a2", "p")):
        kind = "prefix" if name == "p" else "lora"
        random_adapter(kind, spec, seed).write(tmp_path / name, spec, f"test/{name}")
        push(registry, tmp_path / name, AdapterName("test", name))
    yield registry
    registry.close()


@pytest.fixture
def engine(tiny_base: Callable[..., AddedBase]) -> Iterator[TorchEngine]:
    options = TorchEngineOptions(
        device=torch.device("cpu"),
        dtype=torch.float32,
        copies=False,
        max_batch_size=8,
        max_prefill_tokens=256,
        max_waiting=8,
        kv_bytes=1 << 24,
        overlay_bytes=1 << 24,
    )
    engine = TorchEngine(tiny_base().stored, options)
    engine.start(lambda events: None)
    yield engine
    engine.close()


def residency(engine: TorchEngine, registry: RegistryApi, tmp_path: Path, limit_bytes: int = 1 << 30) -> Residency:
    return Residency(engine, registry, tmp_path / "pulled", limit_bytes)


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
    weights = next(f for f in registry.resolve("test/a0").manifest.files if f.path.endswith(".safetensors"))
    blob = next((tmp_path / "home").rglob(weights.sha256.removeprefix("sha256:")))
    good = blob.read_bytes()
    blob.chmod(0o600)
    blob.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
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
