"""Adapters of every kind in one batch: each row as its own oracle has it, and as it is alone."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from benchmarks.engines import Trace, Tracer
from benchmarks.oracles import Oracle
from benchmarks.subjects import RandomAdapter, random_adapter
from tests.tiny_models import AddedBase
from weft_adapters.base import StoredBase
from weft_adapters.kinds.kind import Adapter, MergeRefusedError
from weft_registry.errors import ExhaustedError
from weft_registry.kinds import kind_schema
from weft_registry.kinds.bottleneck import BottleneckParams
from weft_server.torch_engine.merging import build_overlay
from weft_server.torch_engine.overlays import OverlayStore

NEW = 6


def patterned_lora(stored: StoredBase) -> RandomAdapter:
    """rsLoRA on some modules of some layers, with ranks and alphas of their own."""
    whole = random_adapter("lora", stored.spec, 9, strength=0.3)
    modules = [name for name in stored.spec.linears if "q_proj" in name or "down_proj" in name]
    params = replace(
        whole.params,
        use_rslora=True,
        target_modules=tuple(modules),
        rank_pattern={modules[0]: 3},
        alpha_pattern={modules[1]: 5.0},
    )
    generator = torch.Generator().manual_seed(9)
    tensors = {
        name: 0.3 * torch.randn([int(n or 0) for n in spec.shape], generator=generator)
        for name, spec in kind_schema("lora").tensors(params, stored.spec).items()
    }
    return RandomAdapter("lora", params, tensors)


def make_adapters(stored: StoredBase) -> list[RandomAdapter]:
    plain = [
        random_adapter(kind, stored.spec, seed, strength=0.3)
        for kind in ("lora", "qalora", "prefix")
        for seed in (1, 2)
    ]
    prompts = [random_adapter("prompt", stored.spec, seed) for seed in (1, 2)]
    scales = [
        random_adapter("dora", stored.spec, 1, strength=0.3),
        random_adapter("dora", stored.spec, 2, strength=0.3, targets=some(stored, "k_proj", "o_proj")),
        random_adapter("ia3", stored.spec, 1, strength=0.3),
        random_adapter("ia3", stored.spec, 2, strength=0.3, targets=some(stored, "v_proj", "down_proj")),
    ]
    return [
        *plain,
        patterned_lora(stored),
        random_adapter("lora", stored.spec, 4, rank=64, strength=0.2),
        *prompts,
        *scales,
        *networks(stored),
    ]


def networks(stored: StoredBase) -> list[RandomAdapter]:
    """At the ends of sublayers: as Pfeiffer has them, as Houlsby has them in one layer, and a fusion."""
    plain = random_adapter("bottleneck", stored.spec, 1, strength=0.2)
    params = BottleneckParams(5, "gelu", "output", ("attention", "mlp"), (1,), 0.5)
    generator = torch.Generator().manual_seed(8)
    tensors = {
        name: 0.3 * torch.randn([int(n or 0) for n in spec.shape], generator=generator)
        for name, spec in kind_schema("bottleneck").tensors(params, stored.spec).items()
    }
    fusion = random_adapter("fusion", stored.spec, 1, strength=0.15)
    return [plain, RandomAdapter("bottleneck", params, tensors), fusion]


def some(stored: StoredBase, *names: str) -> list[str]:
    return [module for module in stored.spec.linears if module.endswith(names)]


def mixed(stored: StoredBase) -> tuple[list[RandomAdapter], list[list[int]], list[Adapter[object] | None]]:
    adapters = make_adapters(stored)
    bound = [adapter.bound(torch.float32, stored) for adapter in adapters]
    wearers = [*bound, None, *reversed(bound), None]
    generator = torch.Generator().manual_seed(2)
    prompts = [
        torch.randint(0, stored.config.vocab_size, (1 + i * 3 % 17,), generator=generator).tolist()
        for i in range(len(wearers))
    ]
    return adapters, prompts, wearers


@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_every_row_has_its_oracles_logits_and_its_tokens_alone(arch: str, tiny_base: Callable[..., AddedBase]) -> None:
    stored = tiny_base(arch).stored
    adapters, prompts, wearers = mixed(stored)
    tracer = Tracer(stored)
    traces = tracer.run(prompts, wearers, NEW)
    oracle = Oracle(stored, adapters)
    for prompt, wearer, trace in zip(prompts, wearers, traces, strict=True):
        expected = oracle.logits(wearer.digest if wearer else None, prompt + trace.tokens[:-1])[len(prompt) - 1 :]
        torch.testing.assert_close(trace.logits_SV.double(), expected, rtol=1e-3, atol=1e-3)
        assert tracer.run([prompt], [wearer], NEW)[0].tokens == trace.tokens


def test_prompts_in_pieces_and_recomputed_ones_stay_right_under_every_adapter(
    tiny_base: Callable[..., AddedBase],
) -> None:
    stored = tiny_base().stored
    _, prompts, wearers = mixed(stored)
    tracer = Tracer(stored)
    whole = tracer.run(prompts, wearers, NEW)
    block_bytes = tracer.decoder.new_cache(1 << 20).block_bytes
    for limits in ({"max_prefill_tokens": 5}, {"max_prefill_tokens": 5, "kv_bytes": 6 * block_bytes}):
        for expected, found in zip(whole, tracer.run(prompts, wearers, NEW, **limits), strict=True):
            assert found.tokens == expected.tokens
            torch.testing.assert_close(found.logits_SV, expected.logits_SV, rtol=1e-3, atol=1e-3)


def test_every_adapter_changes_the_answer(tiny_base: Callable[..., AddedBase]) -> None:
    stored = tiny_base().stored
    tracer = Tracer(stored)
    base = tracer.run([[1, 2, 3]], [None], 1)[0].logits_SV
    for adapter in make_adapters(stored):
        own = tracer.run([[1, 2, 3]], [adapter.bound(torch.float32, stored)], 1)[0].logits_SV
        assert (own - base).abs().max() > 0.05


MERGED = {"lora": 0, "qalora": 2, "patterned lora": 6, "dora": 10, "ia3": 12, "ia3 on some": 13}


@pytest.mark.parametrize("case", MERGED)
def test_merged_rows_and_all_others_stay_right(case: str, tiny_base: Callable[..., AddedBase]) -> None:
    stored = tiny_base().stored
    _, prompts, wearers = mixed(stored)
    tracer = Tracer(stored)
    before = tracer.run(prompts, wearers, NEW)
    adapter = wearers[MERGED[case]]
    assert adapter is not None
    assert adapter.kind.name in case
    overlay = build_overlay(stored, tracer.decoder, adapter)
    during = tracer.run(prompts, wearers, NEW, overlay)
    for wearer, a, b in zip(wearers, before, during, strict=True):
        assert a.tokens == b.tokens
        if wearer is adapter:
            torch.testing.assert_close(a.logits_SV, b.logits_SV, rtol=1e-3, atol=1e-3)
            assert not torch.equal(a.logits_SV, b.logits_SV)
    # All rows merged: no row takes the base's own weights.
    alone = tracer.run(prompts[:2], [adapter, adapter], NEW, overlay)
    unmerged = tracer.run(prompts[:2], [adapter, adapter], NEW)
    for a, b in zip(alone, unmerged, strict=True):
        torch.testing.assert_close(a.logits_SV, b.logits_SV, rtol=1e-3, atol=1e-3)
    after = tracer.run(prompts, wearers, NEW)
    assert all(same(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("rows", [1, 13], ids=["a row", "a batch"])
@pytest.mark.parametrize("kind", ["qalora", "ia3"])
def test_merged_int4_in_bfloat16_answers_as_unmerged(kind: str, rows: int, tiny_base: Callable[..., AddedBase]) -> None:
    stored = tiny_base().stored
    targets = some(stored, "k_proj", "v_proj", "up_proj") if kind == "ia3" else None
    adapter = random_adapter(kind, stored.spec, 1, strength=0.3, targets=targets).bound(torch.bfloat16)
    tracer = Tracer(stored, torch.bfloat16, copies=True)
    overlay = build_overlay(stored, tracer.decoder, adapter)
    prompts = [[5 + i] for i in range(rows)]
    merged = tracer.run(prompts, [adapter] * rows, 1, overlay)
    own = tracer.run(prompts, [adapter] * rows, 1)
    base = tracer.run(prompts, [None] * rows, 1)
    for m, o, b in zip(merged, own, base, strict=True):
        near = (m.logits_SV - o.logits_SV).abs().max()
        far = (m.logits_SV - b.logits_SV).abs().max()
        assert near < 0.25 * far


@pytest.mark.parametrize("kind", ["dora", "ia3"])
def test_scaled_outputs_take_their_biases_as_peft_does_served_and_merged(
    kind: str, tiny_base: Callable[..., AddedBase]
) -> None:
    stored = tiny_base("qwen2").stored
    assert stored.bias("model.layers.0.self_attn.v_proj") is not None
    adapter = random_adapter(kind, stored.spec, 1, strength=0.5, targets=some(stored, "k_proj", "v_proj", "up_proj"))
    prompt = [7, 3, 200, 41, 5]
    expected = Oracle(stored, [adapter]).logits(adapter.digest, prompt)[-1:]
    tracer, bound = Tracer(stored), adapter.bound(torch.float32, stored)
    overlay = build_overlay(stored, tracer.decoder, bound)
    for found in (tracer.run([prompt], [bound], 1), tracer.run([prompt], [bound], 1, overlay)):
        torch.testing.assert_close(found[0].logits_SV.double(), expected, rtol=1e-3, atol=1e-3)


def test_virtual_tokens_cannot_be_merged_and_an_overlay_has_a_limit(tiny_base: Callable[..., AddedBase]) -> None:
    stored = tiny_base().stored
    tracer = Tracer(stored)
    for kind in ("prefix", "prompt"):
        with pytest.raises(MergeRefusedError, match=kind):
            build_overlay(stored, tracer.decoder, random_adapter(kind, stored.spec, 1).bound(torch.float32))
    lora, store = random_adapter("lora", stored.spec, 1).bound(torch.float32), OverlayStore(1000)
    with pytest.raises(ExhaustedError, match="--overlay-memory"):
        build_overlay(stored, tracer.decoder, lora, reserve=lambda size: store.reserve(lora.digest, size))


def same(a: Trace, b: Trace) -> bool:
    return a.tokens == b.tokens and torch.equal(a.logits_SV, b.logits_SV)
