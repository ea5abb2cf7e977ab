"""Bottleneck adapters, stacks and fusions served: AdapterHub's logits in both decoders, neighbours untouched, and a
fusion's parts brought along or refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.engines import Tracer
from benchmarks.subjects import random_adapter
from tests.oracles.adapterhub_subjects import CASES, SHOWN, TOKENS
from tests.oracles.hub_base import add_hub_base, expected, hub_adapter, hub_fusion
from tests.server import native, registries
from tests.server.registries import Counting
from tests.tiny_models import AddedBase
from weft_adapters.base import StoredBase
from weft_adapters.kinds import KINDS
from weft_adapters.kinds.kind import Adapter, MergeRefusedError
from weft_registry.errors import ExhaustedError, PreconditionError, UnsupportedError
from weft_server.reload import Reloader
from weft_server.torch_engine.engine import TorchEngine
from weft_server.torch_engine.merging import build_overlay
from weft_server.vllm_engine.kinds import served


@pytest.fixture(scope="module")
def hub_base(tmp_path_factory: pytest.TempPathFactory) -> StoredBase:
    return add_hub_base(tmp_path_factory.mktemp("hub")).stored


def worn(name: str, dtype: torch.dtype, base: StoredBase) -> Adapter[object]:
    """One of AdapterHub's cases as an engine wears it."""
    case = CASES[name]
    if case.fusion:
        return hub_fusion(name).bound(dtype, base)
    parts = [hub_adapter(part).bound(dtype) for part in case.adapters]
    if len(parts) == 1:
        return parts[0]
    return KINDS["bottleneck"].compose([(part, 1.0) for part in parts], f"sha256:{list(CASES).index(name):064x}")


def answers(tracer: Tracer, wearers: list[Adapter[object] | None]) -> list[Tensor]:
    """The logits after `TOKENS`, everybody in one batch."""
    return [trace.logits_SV[0, :SHOWN].float() for trace in tracer.run([TOKENS] * len(wearers), wearers, 1)]


def test_all_of_adapterhubs_cases_in_one_batch_have_its_logits(hub_base: StoredBase) -> None:
    wearers = [worn(name, torch.float32, hub_base) for name in CASES]
    found = answers(Tracer(hub_base), [None, *wearers, None])
    torch.testing.assert_close(found[0], expected("base")[-1], atol=2e-4, rtol=1e-4)
    for name, logits in zip(CASES, found[1:-1], strict=True):
        torch.testing.assert_close(logits, expected(name)[-1], atol=5e-4, rtol=1e-3, msg=partial("{}: {}".format, name))


def test_the_native_decoder_has_them_up_to_bfloat16(hub_base: StoredBase) -> None:
    tracer = Tracer(hub_base, decoder=native.decoder(hub_base))
    wearers = [worn(name, torch.bfloat16, hub_base) for name in CASES]
    found = answers(tracer, [None, *wearers])
    base = expected("base")[-1]
    assert float((found[0] - base).norm() / base.norm()) < 0.03
    for name, logits in zip(CASES, found[1:], strict=True):
        wanted = expected(name)[-1]
        error, effect = (logits - wanted).norm(), (wanted - base).norm()
        assert error < 0.08 * wanted.norm(), name
        assert error < 0.25 * effect, name


def test_rows_without_one_keep_their_bits_beside_any_number_of_them(tiny_base: Callable[..., AddedBase]) -> None:
    stored = tiny_base().stored
    lora = random_adapter("lora", stored.spec, 5, strength=0.3).bound(torch.bfloat16)
    prompts = [[5, 9, 200, 31], [7, 7, 12], [4, 90, 3, 77, 8], [31, 2]]
    networks = [
        random_adapter(kind, stored.spec, seed, strength=0.3).bound(torch.bfloat16, stored)
        for kind in ("bottleneck", "fusion")
        for seed in (1, 2)
    ]
    decoder = native.decoder(stored)
    alone = Tracer(stored, decoder=decoder).run(prompts[:2], [lora, None], 4)
    wearers: list[Adapter[object] | None] = [lora, None]
    for count in (1, 2, 4):
        beside = [*wearers, *networks[:count]]
        mixed = Tracer(stored, decoder=decoder).run([prompts[i % 4] for i in range(len(beside))], beside, 4)
        for before, after in zip(alone, mixed[:2], strict=True):
            assert torch.equal(before.logits_SV, after.logits_SV)


@pytest.mark.parametrize("decoder", ["torch", "native"])
def test_numbers_too_large_to_square_are_no_answer(decoder: str, tiny_base: Callable[..., AddedBase]) -> None:
    base = tiny_base().stored
    large = random_adapter("bottleneck", base.spec, 1)
    # Every number is finite; the last norm would make zeros of them, and all tokens equally likely.
    large = replace(large, params=replace(large.params, scaling=1e30))
    tracer = Tracer(base, decoder=native.decoder(base) if decoder == "native" else None)
    dtype = torch.bfloat16 if decoder == "native" else torch.float32
    alone, beside = answers(tracer, [large.bound(dtype), None])
    assert bool(alone.isnan().all())
    assert bool(beside.isfinite().all())


@pytest.mark.parametrize("kind", ["bottleneck", "fusion"])
def test_merging_is_refused_with_the_reason(kind: str, tiny_base: Callable[..., AddedBase]) -> None:
    stored = tiny_base().stored
    adapter = random_adapter(kind, stored.spec, 1).bound(torch.float32)
    with pytest.raises(MergeRefusedError, match="cannot be merged"):
        build_overlay(stored, Tracer(stored).decoder, adapter)


@pytest.mark.parametrize("kind", ["bottleneck", "fusion"])
def test_vllm_refuses_it_by_name(kind: str) -> None:
    with pytest.raises(UnsupportedError, match=f"does not serve adapters of the kind '{kind}'"):
        served(kind)


async def test_a_fusion_brings_its_parts_into_memory_and_counts_them(
    engine: TorchEngine, registry: Counting, tiny_base: Callable[..., AddedBase], tmp_path: Path
) -> None:
    spec = tiny_base().stored.spec
    _, parts = registries.publish_fusion(registry, spec, tmp_path / "made")
    held, resolver = registries.residency(engine, registry, tmp_path)
    lease = await held.lease("test/fused")
    bound = lease.handle
    assert isinstance(bound, Adapter)
    assert [part.digest for part in bound.parts] == [part.digest for part in parts]
    assert held.resident_bytes == bound.size_bytes > sum(part.size_bytes for part in bound.parts)
    # Room is made for what is stored; what is computed with takes less.
    size = (await resolver.ask("test/fused")).memory_bytes
    assert bound.size_bytes < size
    lease.release()
    tight, _ = registries.residency(engine, registry, tmp_path / "tight", limit_bytes=size - 1)
    with pytest.raises(ExhaustedError, match="raise --adapter-memory"):
        await tight.lease("test/fused")


async def test_a_fusion_whose_part_was_yanked_is_refused_by_name_before_anything_is_pulled(
    engine: TorchEngine, registry: Counting, tiny_base: Callable[..., AddedBase], tmp_path: Path
) -> None:
    _, parts = registries.publish_fusion(registry, tiny_base().stored.spec, tmp_path / "made")
    registry.yank(str(parts[1]), "leaked")
    held, _ = registries.residency(engine, registry, tmp_path)
    with pytest.raises(PreconditionError, match=r"test/part-1@.*yanked \(leaked\)"):
        await held.lease("test/fused")
    assert registry.blobs_read == 0
    (await held.lease(str(parts[0]))).release()


@pytest.mark.parametrize("told", [False, True])
async def test_a_fusion_whose_part_is_yanked_while_it_is_served_is_refused_from_the_next_look_on(
    engine: TorchEngine, registry: Counting, tiny_base: Callable[..., AddedBase], tmp_path: Path, *, told: bool
) -> None:
    _, parts = registries.publish_fusion(registry, tiny_base().stored.spec, tmp_path / "made")
    held, resolver = registries.residency(engine, registry, tmp_path, follow=True)
    reloader = Reloader(resolver, held, 5.0)
    (await held.lease("test/fused")).release()
    await reloader.check(told=told)
    (await held.lease("test/fused")).release()
    registry.yank(str(parts[1]), "leaked")
    # Moves of aliases may all be told: this is none.
    await reloader.check(told=told)
    with pytest.raises(PreconditionError, match=r"test/part-1@.*yanked \(leaked\)"):
        await held.lease("test/fused")
