"""Soft prompts on both decoders. The oracle needs no adapter: a prompt of real tokens' embeddings IS those tokens."""

from collections.abc import Callable

import pytest
import torch

from benchmarks.engines import Trace, Tracer
from benchmarks.subjects import RandomAdapter, random_adapter
from tests.server import native
from tests.tiny_models import AddedBase
from weft_adapters.base import StoredBase
from weft_adapters.kinds.kind import Adapter
from weft_registry.kinds.prompt import TENSOR, PromptParams
from weft_server.torch_engine.merging import build_overlay
from weft_server.torch_engine.scheduler import Scheduler
from weft_server.torch_engine.sequence import Sequence

NEW = 8
# Within a block, a block and one token, several blocks, and one token.
LENGTHS = (5, 17, 40, 1)
PIECES: list[dict[str, int]] = [{"max_prefill_tokens": 1}, {"max_prefill_tokens": 7}, {"max_prefill_tokens": 19}]


def words(stored: StoredBase, length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, stored.config.vocab_size, (length,), generator=generator).tolist()


def spelled(stored: StoredBase, ids: list[int], dtype: torch.dtype) -> Adapter[object]:
    """A soft prompt that is the embeddings of `ids`."""
    rows_PE = stored.embedding(torch.float32)[ids].clone()
    return RandomAdapter("prompt", PromptParams(len(ids), rows_PE.shape[1]), {TENSOR: rows_PE}).bound(dtype)


def batch(
    stored: StoredBase, dtype: torch.dtype
) -> tuple[list[list[int]], list[list[int]], list[Adapter[object] | None]]:
    """(the virtual text of each request, its own text, its adapter); the last ones have none."""
    virtual = [words(stored, length, seed) for seed, length in enumerate(LENGTHS)] + [[], []]
    text = [words(stored, 1 + 13 * i % 30, 50 + i) for i in range(len(virtual))]
    return virtual, text, [spelled(stored, ids, dtype) if ids else None for ids in virtual]


@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_a_prompt_of_words_answers_as_the_words_do(arch: str, tiny_base: Callable[..., AddedBase]) -> None:
    stored = tiny_base(arch).stored
    virtual, text, adapters = batch(stored, torch.float32)
    tracer = Tracer(stored)
    found = tracer.run(text, adapters, NEW)
    read = [before + own for before, own in zip(virtual, text, strict=True)]
    for a, b in zip(found, tracer.run(read, [None] * len(read), NEW), strict=True):
        assert a.tokens == b.tokens
        torch.testing.assert_close(a.logits_SV, b.logits_SV, rtol=1e-4, atol=1e-4)


def test_on_the_native_decoder_the_bits_are_those_of_the_words(tiny_base: Callable[..., AddedBase]) -> None:
    stored = tiny_base().stored
    virtual, text, adapters = batch(stored, torch.bfloat16)
    tracer = Tracer(stored, decoder=native.decoder(stored))
    read = [before + own for before, own in zip(virtual, text, strict=True)]
    found, wanted = tracer.run(text, adapters, NEW), tracer.run(read, [None] * len(read), NEW)
    assert all(same(a, b) for a, b in zip(found, wanted, strict=True))
    for limits in PIECES:
        pieces = tracer.run(text, adapters, NEW, **limits)
        assert all(same(a, b) for a, b in zip(pieces, wanted, strict=True))


@pytest.mark.parametrize("limits", PIECES)
def test_a_prompt_computed_in_pieces_is_the_same(limits: dict[str, int], tiny_base: Callable[..., AddedBase]) -> None:
    stored = tiny_base().stored
    _, text, adapters = batch(stored, torch.float32)
    tracer = Tracer(stored)
    whole = tracer.run(text, adapters, NEW)
    close(tracer.run(text, adapters, NEW, **limits), whole)


def test_a_prompt_computed_again_after_giving_way_is_the_same(
    tiny_base: Callable[..., AddedBase], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = tiny_base().stored
    _, text, adapters = batch(stored, torch.float32)
    text, adapters = 2 * text, 2 * adapters
    tracer = Tracer(stored)
    whole = tracer.run(text, adapters, 40)
    gave_way: list[Sequence] = []
    preempt = Scheduler._preempt_last

    def noted(scheduler: Scheduler) -> Sequence:
        gave_way.append(preempt(scheduler))
        return gave_way[-1]

    monkeypatch.setattr(Scheduler, "_preempt_last", noted)
    room = tracer.decoder.new_cache(1 << 20).block_bytes * 9
    close(tracer.run(text, adapters, 40, kv_bytes=room, max_prefill_tokens=7), whole)
    assert any(sequence.num_virtual for sequence in gave_way)


def test_a_merged_adapters_rows_and_soft_prompts_share_a_step(tiny_base: Callable[..., AddedBase]) -> None:
    stored = tiny_base().stored
    lora = random_adapter("lora", stored.spec, 1, strength=0.3).bound(torch.float32)
    _, text, adapters = batch(stored, torch.float32)
    worn: list[Adapter[object] | None] = [*adapters, lora]
    prompts = [*text, [5, 6, 7]]
    tracer = Tracer(stored)
    overlay = build_overlay(stored, tracer.decoder, lora)
    for a, b in zip(tracer.run(prompts, worn, NEW), tracer.run(prompts, worn, NEW, overlay), strict=True):
        assert a.tokens == b.tokens
        torch.testing.assert_close(a.logits_SV, b.logits_SV, rtol=1e-3, atol=1e-3)


def close(found: list[Trace], wanted: list[Trace]) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert a.tokens == b.tokens
        torch.testing.assert_close(a.logits_SV, b.logits_SV, rtol=1e-4, atol=1e-4)


def same(a: Trace, b: Trace) -> bool:
    return a.tokens == b.tokens and torch.equal(a.logits_SV, b.logits_SV)
