"""The native decoder against the torch decoder and transformers, and against itself: the same bits in every batch."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.engines import Trace, Tracer
from benchmarks.subjects import random_adapter
from tests.adapters.test_new_kind import Bias, BiasSchema
from tests.server import native
from tests.server.test_decoder import VARIANTS
from tests.server.test_mixed_batch import make_adapters
from tests.tiny_models import AddedBase
from weft_adapters.base import StoredBase
from weft_adapters.kinds.kind import Adapter
from weft_adapters.segments import Segments
from weft_registry.errors import UnsupportedError
from weft_server.torch_engine.batch import Span, StepBatch
from weft_server.torch_engine.deltas import ActiveAdapters
from weft_server.torch_engine.merging import build_overlay
from weft_server.torch_engine.native import library as native_library
from weft_server.torch_engine.native.low_rank import NativeAdapter, lay_out
from weft_server.torch_engine.sites import decoder_sites

NEW = 6


def prompts_of(stored: StoredBase, lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, stored.config.vocab_size, (n,), generator=generator).tolist() for n in lengths]


def distance(found: Tensor, expected: Tensor) -> float:
    """The difference's root mean square, as a share of the logits'."""
    return float((found - expected).norm() / expected.norm())


def first_logits(traces: list[Trace]) -> Tensor:
    """Those after the prompts: later ones depend on which token a near tie fell to."""
    return torch.stack([trace.logits_SV[0] for trace in traces])


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_float32_up_to_bfloat16(variant: str, tiny_base: Callable[..., AddedBase]) -> None:
    arch, overrides = VARIANTS[variant]
    stored = tiny_base(arch, **overrides).stored
    prompts = prompts_of(stored, [1, 5, 23, 70, 130])
    exact = first_logits(Tracer(stored).run(prompts, [None] * 5, 1))
    rounded = first_logits(Tracer(stored, torch.bfloat16).run(prompts, [None] * 5, 1))
    found = first_logits(Tracer(stored, decoder=native.decoder(stored)).run(prompts, [None] * 5, 1))
    assert distance(found, exact) < 0.03
    # It rounds less than torch does in bfloat16, so it may not be further from the truth, give or take the case.
    assert distance(found, exact) < 1.2 * distance(rounded, exact)


def test_every_kind_in_one_batch_is_what_float32_says(tiny_base: Callable[..., AddedBase]) -> None:
    stored = tiny_base().stored
    adapters = make_adapters(stored)
    prompts = prompts_of(stored, [3 + 5 * i for i in range(len(adapters))])
    exact = first_logits(Tracer(stored).run(prompts, [a.bound(torch.float32, stored) for a in adapters], 1))
    worn = [a.bound(torch.bfloat16, stored) for a in adapters]
    found = first_logits(Tracer(stored, decoder=native.decoder(stored)).run(prompts, worn, 1))
    base = first_logits(Tracer(stored).run(prompts, [None] * len(prompts), 1))
    for row in range(len(adapters)):
        # Adapters this strong make rounding errors grow, in torch too; test_native_linear is the strict one.
        assert distance(found[row], exact[row]) < 0.2
        assert distance(base[row], exact[row]) > 3 * distance(found[row], exact[row]), "the adapter must matter"


def test_a_request_gets_the_same_bits_alone_in_a_batch_and_in_pieces(tiny_base: Callable[..., AddedBase]) -> None:
    stored = tiny_base().stored
    worn: list[Adapter[object] | None] = [a.bound(torch.bfloat16, stored) for a in make_adapters(stored)]
    wearers = [*worn, None, *reversed(worn), None, *worn[:3]]
    prompts = prompts_of(stored, [1 + 17 * i % 90 for i in range(len(wearers))])
    decoder = native.decoder(stored)
    together = Tracer(stored, decoder=decoder).run(prompts, wearers, NEW)
    pieces = Tracer(stored, decoder=decoder).run(prompts, wearers, NEW, max_prefill_tokens=7)
    one_thread = Tracer(stored, decoder=native.decoder(stored, 1)).run(prompts, wearers, NEW)
    three_threads = Tracer(stored, decoder=native.decoder(stored, 3)).run(prompts, wearers, NEW)
    for i, expected in enumerate(together):
        alone = Tracer(stored, decoder=decoder).run([prompts[i]], [wearers[i]], NEW)[0]
        worn_here = wearers[i]
        for other in (alone, pieces[i], one_thread[i], three_threads[i]):
            if worn_here is not None and worn_here.kind.name in ("bottleneck", "fusion"):
                # Products of torch's, whose last bits depend on how many rows they have.
                assert distance(other.logits_SV[0], expected.logits_SV[0]) < 0.05
            else:
                assert torch.equal(other.logits_SV, expected.logits_SV)


def test_the_greedy_choice_is_the_first_of_the_largest_logits(tiny_base: Callable[..., AddedBase]) -> None:
    # 530 is no multiple of the block that the head computes in.
    for vocabulary in (512, 530):
        stored = tiny_base("llama", vocab_size=vocabulary).stored
        decoder = native.decoder(stored)
        decoder.new_cache(1 << 20)
        rows = torch.tensor([3, 77, 500])
        spans = [Span(slice(i, i + 1), 0, [i]) for i in range(3)]
        step = StepBatch(
            rows, torch.zeros(3, dtype=torch.int64), Segments([Segments.BASE] * 3), 0, spans, torch.arange(3)
        )
        logits = decoder.forward(step, ActiveAdapters(), None)
        assert logits.logits_SV.shape == (3, vocabulary)
        assert torch.equal(logits.best_S, logits.logits_SV.max(-1).values)
        first = (logits.logits_SV == logits.best_S[:, None]).int().argmax(-1)
        assert torch.equal(logits.token_S, first)


@pytest.mark.parametrize("kind", ["qalora", "lora", "dora", "ia3"])
def test_merged_rows_answer_as_unmerged_and_others_keep_their_bits(
    kind: str, tiny_base: Callable[..., AddedBase]
) -> None:
    stored = tiny_base("qwen2").stored
    merged = random_adapter(kind, stored.spec, 5, strength=0.3).bound(torch.bfloat16, stored)
    other = random_adapter("lora", stored.spec, 6, strength=0.3).bound(torch.bfloat16)
    prompts = prompts_of(stored, [30, 4, 12, 3])
    wearers: list[Adapter[object] | None] = [other, merged, None, merged]
    decoder = native.decoder(stored)
    overlay = build_overlay(stored, decoder, merged)
    before = Tracer(stored, decoder=decoder).run(prompts, wearers, 1)
    during = Tracer(stored, decoder=decoder).run(prompts, wearers, 1, overlay)
    after = Tracer(stored, decoder=decoder).run(prompts, wearers, 1)
    for row, wearer in enumerate(wearers):
        assert torch.equal(after[row].logits_SV, before[row].logits_SV)
        if wearer is merged:
            assert distance(during[row].logits_SV, before[row].logits_SV) < 0.03
            assert not torch.equal(during[row].logits_SV, before[row].logits_SV), "the overlay was not used"
        else:
            assert torch.equal(during[row].logits_SV, before[row].logits_SV)


def test_a_poisoned_adapter_changes_no_neighbour(tiny_base: Callable[..., AddedBase]) -> None:
    stored = tiny_base().stored
    good = random_adapter("lora", stored.spec, 5, strength=0.3).bound(torch.bfloat16)
    bad = random_adapter("lora", stored.spec, 6).bound(torch.bfloat16)
    name = next(iter(bad.tensors))
    bad = replace(bad, tensors={**bad.tensors, name: torch.full_like(bad.tensors[name], float("nan"))})
    prompts = prompts_of(stored, [5, 6, 7])
    decoder = native.decoder(stored)
    alone = Tracer(stored, decoder=decoder).run([prompts[0], prompts[2]], [good, None], NEW)
    beside = Tracer(stored, decoder=decoder).run(prompts, [good, bad, None], NEW)
    assert torch.isnan(beside[1].logits_SV).all()
    assert torch.equal(beside[0].logits_SV, alone[0].logits_SV)
    assert torch.equal(beside[2].logits_SV, alone[1].logits_SV)


def test_a_kind_without_factors_is_applied_through_its_pack(tiny_base: Callable[..., AddedBase]) -> None:
    stored = tiny_base().stored
    shapes = {name: spec.shape[0] or 0 for name, spec in BiasSchema().tensors(None, stored.spec).items()}
    shifted = Adapter("sha256:" + "b" * 64, Bias(), None, {n: torch.full((s,), 0.5) for n, s in shapes.items()})
    low_rank = random_adapter("lora", stored.spec, 5, strength=0.3).bound(torch.bfloat16)
    prompts = prompts_of(stored, [5, 6, 7])
    wearers: list[Adapter[object] | None] = [shifted, low_rank, None]
    exact = first_logits(Tracer(stored).run(prompts, [shifted, None, None], 1))
    found = Tracer(stored, decoder=native.decoder(stored)).run(prompts, wearers, 1)
    alone = Tracer(stored, decoder=native.decoder(stored)).run(prompts[1:2], [low_rank], 1)
    assert distance(found[0].logits_SV[0], exact[0]) < 0.03
    # Sums at a stop are rounded once more: close, and no longer equal to the bit.
    assert distance(found[1].logits_SV, alone[0].logits_SV) < 0.03
    assert distance(found[2].logits_SV[0], exact[2]) < 0.03


@pytest.mark.parametrize("kind", ["lora", "qalora", "dora"])
@pytest.mark.parametrize("rank", [1, 2, 5, 8, 64])
def test_an_adapter_laid_out_gives_its_stored_tensors_back_and_grows_little(
    kind: str, rank: int, tiny_base: Callable[..., AddedBase]
) -> None:
    stored = tiny_base().stored
    spec = stored.spec
    sites = [site for layer in range(spec.num_layers) for site in decoder_sites(spec, layer)]
    adapter = random_adapter(kind, spec, 3, rank=rank).bound(torch.bfloat16, stored)
    laid = lay_out(adapter, sites)
    assert isinstance(laid, NativeAdapter)
    assert laid.tensors.keys() == adapter.tensors.keys()
    for name, tensor in adapter.tensors.items():
        assert torch.equal(laid.tensors[name], tensor)
    assert laid.size_bytes <= 1.1 * adapter.size_bytes


def test_without_a_compiler_the_reason_is_given(
    tiny_base: Callable[..., AddedBase], tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_library, "find_compiler", lambda: None)
    with pytest.raises(UnsupportedError, match="no C compiler"):
        native_library.built(tmp_path)  # type: ignore[arg-type]


@pytest.mark.real
def test_the_real_base_is_closer_to_float32_than_torch_in_bfloat16(real_base: AddedBase) -> None:
    stored = real_base.stored
    prompts = [[504, 3575, 282, 4649, 314], [28, 665, 260, 2240], list(range(100, 400))]
    exact = first_logits(Tracer(stored).run(prompts, [None] * 3, 1))
    rounded = first_logits(Tracer(stored, torch.bfloat16).run(prompts, [None] * 3, 1))
    found = first_logits(Tracer(stored, decoder=native.decoder(stored)).run(prompts, [None] * 3, 1))
    assert distance(found, exact) < distance(rounded, exact)
