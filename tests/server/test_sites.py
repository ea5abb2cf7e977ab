"""What a kind may do at every site, through both decoders: embeddings, scales of inputs and outputs, ends of
sublayers. Each against a base that was changed to the same effect, or against plain text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.engines import Trace, Tracer
from benchmarks.subjects import random_adapter
from tests.server import native
from tests.tiny_models import AddedBase
from weft_adapters.base import StoredBase
from weft_adapters.int4 import Int4Weight
from weft_adapters.kinds.kind import Adapter, Kind, OutputScale, SublayerPack, SublayerSite
from weft_adapters.segments import Segments
from weft_registry.kinds.lora import LoraSchema
from weft_server.torch_engine.merging import build_overlay

NEW = 5
OWN_INPUT = ("o_proj", "down_proj")


class Named(LoraSchema):
    """A schema that says nothing but a name: these adapters are made in memory."""

    def __init__(self, name: str) -> None:
        self.name = name


class Scaled(Kind[Any]):
    """`y <- s (W (u x)) + t` at every linear module, u only where a module has its input to itself."""

    schema = Named("scaled")
    scales = True

    def input_scale(self, adapter: Adapter[Any], module: str) -> Tensor | None:
        return adapter.tensors.get(f"{module}.input")

    def output_scale(self, adapter: Adapter[Any], module: str) -> OutputScale | None:
        scale_N = adapter.tensors.get(f"{module}.output")
        return None if scale_N is None else OutputScale(scale_N, adapter.tensors.get(f"{module}.shift"))

    def overlay(self, module: str, weight: Int4Weight, adapter: Adapter[Any]) -> Tensor:
        scale_K, scaled = self.input_scale(adapter, module), self.output_scale(adapter, module)
        dense = weight.dequantize() if scale_K is None else weight.dequantize() * scale_K
        return dense if scaled is None else dense * scaled.scale_N[:, None]


class Spoken(Kind[Any]):
    """A soft prompt."""

    schema = Named("spoken")

    def soft_prompt(self, adapter: Adapter[Any]) -> Tensor:
        return adapter.tensors["embeddings"]


@dataclass(frozen=True)
class HalvedPack:
    """`y <- y / 2 + input - input + residual - residual`: reads everything, and halves."""

    indices: Sequence[int]
    size_bytes: int = 0

    def apply(self, input_TE: Tensor, residual_TE: Tensor, y_TE: Tensor, segments: Segments) -> None:
        for index in self.indices:
            if index in segments.counts:
                rows = segments.rows(index)
                assert input_TE.shape == residual_TE.shape == y_TE.shape
                assert bool(input_TE[rows].any())
                assert bool(residual_TE[rows].any())
                y_TE[rows] *= 0.5


class Halved(Kind[Any]):
    """Halves what every sublayer adds."""

    schema = Named("halved")

    def sublayer_pack(self, adapters: Sequence[Adapter[Any] | None], site: SublayerSite) -> SublayerPack | None:
        return HalvedPack([index for index, adapter in enumerate(adapters) if adapter is not None])


def made(kind: Kind[Any], letter: str, **tensors: Tensor) -> Adapter[Any]:
    return Adapter("sha256:" + letter * 64, kind, None, tensors)


def scaled(stored: StoredBase, letter: str, *, shift: bool = False) -> Adapter[Any]:
    generator = torch.Generator().manual_seed(ord(letter))
    tensors: dict[str, Tensor] = {}
    for module, (n_out, n_in) in stored.spec.linears.items():
        if not module.endswith(("q_proj", "gate_proj")):  # Some modules of a shared site are left alone.
            tensors[f"{module}.output"] = 1 + 0.3 * torch.randn(n_out, generator=generator)
            if shift:
                tensors[f"{module}.shift"] = 0.05 * torch.randn(n_out, generator=generator)
        if module.endswith(OWN_INPUT):
            tensors[f"{module}.input"] = 1 + 0.3 * torch.randn(n_in, generator=generator)
    return made(Scaled(), letter, **tensors)


def tracers(stored: StoredBase) -> dict[str, Tracer]:
    return {"torch": Tracer(stored), "native": Tracer(stored, decoder=native.decoder(stored))}


def prompts_of(stored: StoredBase, lengths: Sequence[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, stored.config.vocab_size, (n,), generator=generator).tolist() for n in lengths]


def near(found: Trace, expected: Trace, decoder: str) -> None:
    """Equal to rounding: float32's, or bfloat16's over a few layers."""
    width = expected.logits_SV.abs().max()
    limit = 1e-4 if decoder == "torch" else 0.05
    assert (found.logits_SV[0] - expected.logits_SV[0]).abs().max() / width < limit


@pytest.mark.parametrize("decoder", ["torch", "native"])
def test_scales_answer_as_a_base_with_scaled_weights(decoder: str, tiny_base: Callable[..., AddedBase]) -> None:
    stored = tiny_base().stored
    tracer = tracers(stored)[decoder]
    adapters = [scaled(stored, "a"), scaled(stored, "b")]
    lora = random_adapter("lora", stored.spec, 3, strength=0.3).bound(torch.float32)
    prompts = prompts_of(stored, [7, 20, 3, 9, 5, 11])
    wearers = [adapters[0], None, adapters[1], lora, adapters[0], None]
    mixed = tracer.run(prompts, wearers, NEW)
    for prompt, wearer, found in zip(prompts, wearers, mixed, strict=True):
        alone = tracer.run([prompt], [wearer], NEW)[0]
        assert alone.tokens == found.tokens
        if decoder == "native":
            assert torch.equal(alone.logits_SV, found.logits_SV), "a row's bits depend on its neighbours"
        if wearer in adapters:
            merged = Tracer(stored)
            expected = merged.run([prompt], [wearer], NEW, build_overlay(stored, merged.decoder, wearer))[0]
            near(found, expected, decoder)
            assert (found.logits_SV[0] - tracer.run([prompt], [None], 1)[0].logits_SV[0]).abs().max() > 0.1


@pytest.mark.parametrize("decoder", ["torch", "native"])
def test_a_shift_stays_a_shift(decoder: str, tiny_base: Callable[..., AddedBase]) -> None:
    stored = tiny_base("qwen2").stored
    adapter, plain = scaled(stored, "a", shift=True), scaled(stored, "a")
    prompts = prompts_of(stored, [9, 4])
    reference = Tracer(stored).run(prompts, [adapter, plain], NEW)
    found = tracers(stored)[decoder].run(prompts, [adapter, plain], NEW)
    for a, b in zip(found, reference, strict=True):
        near(a, b, decoder)
    assert (reference[0].logits_SV - Tracer(stored).run(prompts[:1], [plain], NEW)[0].logits_SV).abs().max() > 0.01


@pytest.mark.parametrize("decoder", ["torch", "native"])
def test_the_end_of_a_sublayer_is_the_output_of_its_last_module(
    decoder: str, tiny_base: Callable[..., AddedBase]
) -> None:
    stored = tiny_base().stored
    tracer = tracers(stored)[decoder]
    halves = {
        f"{module}.output": torch.full((n_out,), 0.5)
        for module, (n_out, _) in stored.spec.linears.items()
        if module.endswith(OWN_INPUT)
    }
    ended, expected = made(Halved(), "c"), made(Scaled(), "d", **halves)
    prompts = prompts_of(stored, [8, 8, 3])
    prompts[1] = prompts[0]
    traces = tracer.run(prompts, [ended, expected, None], NEW)
    near(traces[0], traces[1], decoder)
    assert traces[0].tokens == traces[1].tokens
    alone = tracer.run(prompts[2:], [None], NEW)[0]
    near(traces[2], alone, "torch")
    if decoder == "native":
        assert torch.equal(traces[2].logits_SV, alone.logits_SV), "another's adapter changed the base's bits"
    assert (traces[0].logits_SV[0] - tracer.run(prompts[:1], [None], 1)[0].logits_SV[0]).abs().max() > 0.1


@pytest.mark.parametrize("decoder", ["torch", "native"])
@pytest.mark.parametrize("pieces", [1 << 20, 5], ids=["whole", "in pieces"])
def test_a_soft_prompt_of_words_is_those_words(decoder: str, pieces: int, tiny_base: Callable[..., AddedBase]) -> None:
    stored = tiny_base().stored
    tracer = tracers(stored)[decoder]
    words = prompts_of(stored, [21])[0]
    dtype = torch.float32 if decoder == "torch" else torch.bfloat16
    soft = made(Spoken(), "e", embeddings=stored.embedding(dtype)[words])
    lora = random_adapter("lora", stored.spec, 3, strength=0.3).bound(torch.float32)
    prompts = prompts_of(stored, [6, 13, 1, 40])
    wearers = [soft, lora, soft, None]
    found = tracer.run(prompts, wearers, NEW, max_prefill_tokens=pieces)
    for prompt, wearer, trace in zip(prompts, wearers, found, strict=True):
        text = words + prompt if wearer is soft else prompt
        expected = tracer.run([text], [None if wearer is soft else wearer], NEW)[0]
        assert trace.tokens == expected.tokens
        torch.testing.assert_close(trace.logits_SV, expected.logits_SV, rtol=1e-4, atol=1e-4)


def test_a_recomputed_soft_prompt_stays_right(tiny_base: Callable[..., AddedBase]) -> None:
    stored = tiny_base().stored
    tracer = Tracer(stored)
    soft = made(Spoken(), "e", embeddings=stored.embedding(torch.float32)[prompts_of(stored, [21])[0]])
    prompts = prompts_of(stored, [6, 13, 2])
    whole = tracer.run(prompts, [soft] * 3, 20)
    block_bytes = tracer.decoder.new_cache(1 << 20).block_bytes
    # Room for one of them and a part of another: somebody is preempted, and begins at the soft prompt again.
    tight = tracer.run(prompts, [soft] * 3, 20, max_prefill_tokens=5, kv_bytes=5 * block_bytes)
    assert [trace.tokens for trace in tight] == [trace.tokens for trace in whole]


def test_an_input_that_modules_share_cannot_be_scaled_for_one(tiny_base: Callable[..., AddedBase]) -> None:
    stored = tiny_base().stored
    module = "model.layers.0.self_attn.q_proj"
    adapter = made(Scaled(), "f", **{f"{module}.input": torch.ones(stored.spec.linears[module][1])})
    with pytest.raises(AssertionError, match="shares its input"):
        Tracer(stored).run([[1, 2]], [adapter], 1)
