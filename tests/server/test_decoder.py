"""The decoder against transformers: every architecture, ragged batches, prefill and decode."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.engines import Tracer
from benchmarks.oracles import dense_model
from benchmarks.subjects import random_adapter
from tests.tiny_models import AddedBase
from weft_server.torch_engine.kv_cache import TorchKvStore

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, untied, biased": ("llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    "llama, llama3 rope": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama, linear rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
    ),
    "llama, no grouping": ("llama", {"num_key_value_heads": 4}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral, window shorter than the prompt": ("mistral", {"sliding_window": 8}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers_in_float32(variant: str, tiny_base: Callable[..., AddedBase]) -> None:
    arch, overrides = VARIANTS[variant]
    stored = tiny_base(arch, **overrides).stored
    generator = torch.Generator().manual_seed(0)
    # Lengths that share a gather and lengths that do not.
    prompts = [torch.randint(0, stored.config.vocab_size, (n,), generator=generator).tolist() for n in (1, 5, 23, 70)]
    new = 12
    traces = Tracer(stored).run(prompts, [None] * len(prompts), new)
    reference = dense_model(stored)
    for prompt, trace in zip(prompts, traces, strict=True):
        ids = torch.tensor([prompt + trace.tokens[:-1]])
        with torch.inference_mode():
            expected = reference(input_ids=ids).logits[0, len(prompt) - 1 :]
        torch.testing.assert_close(trace.logits_SV, expected, rtol=1e-4, atol=1e-4)
        assert expected.argmax(-1).tolist() == trace.tokens


@pytest.mark.parametrize("variant", ["llama", "mistral, window shorter than the prompt", "qwen3"])
@pytest.mark.parametrize("piece", [1, 7, 16, 33])
def test_prompts_in_pieces_and_recomputed_ones_have_the_logits_of_whole_ones(
    variant: str, piece: int, tiny_base: Callable[..., AddedBase]
) -> None:
    arch, overrides = VARIANTS[variant]
    stored = tiny_base(arch, **overrides).stored
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, stored.config.vocab_size, (n,), generator=generator).tolist() for n in (40, 3, 16, 64)]
    tracer = Tracer(stored)
    whole = tracer.run(prompts, [None] * 4, 20)
    pieces = tracer.run(prompts, [None] * 4, 20, max_prefill_tokens=piece)
    # So little room that sequences give way to each other and are computed again.
    block_bytes = tracer.decoder.new_cache(1 << 20).block_bytes
    crowded = tracer.run(prompts, [None] * 4, 20, max_prefill_tokens=piece, kv_bytes=8 * block_bytes)
    for expected, *others in zip(whole, pieces, crowded, strict=True):
        for other in others:
            assert other.tokens == expected.tokens
            torch.testing.assert_close(other.logits_SV, expected.logits_SV, rtol=1e-4, atol=1e-4)


def test_what_blocks_held_before_reaches_no_result(
    tiny_base: Callable[..., AddedBase], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = tiny_base().stored
    prefix = random_adapter("prefix", stored.spec, 1, strength=0.3).bound(torch.float32)
    prompts, wearers = [[1, 2, 3], list(range(70)), [9] * 15, [4]], [prefix, None, None, prefix]
    tracer = Tracer(stored)
    clean = tracer.run(prompts, wearers, 20)
    new_cache = tracer.decoder.new_cache

    def poisoned(limit_bytes: int) -> TorchKvStore:
        store = new_cache(limit_bytes)
        assert isinstance(store, TorchKvStore)
        store.key_LHNSD[:] = float("nan")
        store.value_LHNSD[:] = float("nan")
        return store

    monkeypatch.setattr(tracer.decoder, "new_cache", poisoned)
    for a, b in zip(clean, tracer.run(prompts, wearers, 20, kv_bytes=1 << 20), strict=True):
        assert a.tokens == b.tokens
        assert torch.equal(a.logits_SV, b.logits_SV)


def test_bfloat16_stays_close_to_float32(tiny_base: Callable[..., AddedBase]) -> None:
    stored = tiny_base().stored
    prompts = [[1, 2, 3, 4, 5], [7, 8, 9]]
    exact = Tracer(stored).run(prompts, [None, None], 1)
    for copies in (True, False):
        rounded = Tracer(stored, torch.bfloat16, copies=copies).run(prompts, [None, None], 1)
        for a, b in zip(exact, rounded, strict=True):
            scale = a.logits_SV.abs().max()
            assert (a.logits_SV - b.logits_SV).abs().max() < 0.05 * scale


@pytest.mark.real
def test_the_real_base_continues_as_transformers_does(real_base: AddedBase) -> None:
    stored = real_base.stored
    reference = dense_model(stored)
    prompts = [[504, 3575, 282, 4649, 314], [28, 665, 260, 2240]]
    traces = Tracer(stored).run(prompts, [None, None], 16)
    for prompt, trace in zip(prompts, traces, strict=True):
        with torch.inference_mode():
            out = reference.generate(torch.tensor([prompt]), max_new_tokens=16, min_new_tokens=16, do_sample=False)
        assert out[0, len(prompt) :].tolist() == trace.tokens
