"""Composition against PEFT's own weighted adapters, against deltas summed in float64, and through the engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.engines import Tracer
from benchmarks.oracles import dense_model, peft_model
from benchmarks.subjects import RandomAdapter, random_adapter
from tests.tiny_models import AddedBase
from weft_adapters.int4 import Int4Weight
from weft_adapters.kinds.kind import Adapter
from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError, UnsupportedError
from weft_registry.kinds.low_rank import PEFT_PREFIX
from weft_server.torch_engine.merging import build_overlay

DIGEST = "sha256:" + "c0" * 32
QUERY = "model.layers.0.self_attn.q_proj"


def delta(adapter: Adapter[Any], module: str, spec: BaseSpec) -> Tensor:
    """`s B A` over the input itself, in float64: the definition."""
    a = adapter.tensors.get(f"{PEFT_PREFIX}{module}.lora_A.weight")
    if a is None:
        return torch.zeros(spec.linears[module], dtype=torch.float64)
    if adapter.kind.name == "qalora":
        a = torch.kron(a, torch.ones(1, spec.fingerprint.quant.group_size))
    b = adapter.tensors[f"{PEFT_PREFIX}{module}.lora_B.weight"]
    product: Tensor = adapter.params.scaling(module) * b.double() @ a.double()
    return product


def compose(parts: Sequence[tuple[Adapter[Any], float]]) -> Adapter[Any]:
    return parts[0][0].kind.compose(parts, DIGEST)


def two(spec: BaseSpec, kinds: tuple[str, str] = ("lora", "lora")) -> list[RandomAdapter]:
    """Different ranks, scalings and modules: the second adapts one module only, with rsLoRA."""
    first = random_adapter(kinds[0], spec, 1, rank=4, strength=0.1)
    second = random_adapter(kinds[1], spec, 2, rank=3, strength=0.1, targets=[QUERY])
    return [first, replace(second, params=replace(second.params, use_rslora=True, alpha=5.0))]


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, -1.5), (0.0, 2.0)])
@pytest.mark.parametrize("kinds", [("lora", "lora"), ("qalora", "qalora"), ("lora", "qalora"), ("qalora", "lora")])
def test_the_composed_delta_is_the_weighted_sum(
    tiny_base: Callable[..., AddedBase], kinds: tuple[str, str], weights: tuple[float, float]
) -> None:
    spec = tiny_base().stored.spec
    parts = [adapter.bound(torch.float32) for adapter in two(spec, kinds)]
    composed = compose(list(zip(parts, weights, strict=True)))
    for module in spec.linears:
        wanted = sum(w * delta(part, module, spec) for part, w in zip(parts, weights, strict=True))
        torch.testing.assert_close(delta(composed, module, spec), wanted, rtol=1e-5, atol=1e-7)


def test_qalora_stays_pooled_only_among_its_own(tiny_base: Callable[..., AddedBase]) -> None:
    spec = tiny_base().stored.spec
    for kinds, wanted in ((("qalora", "qalora"), "qalora"), (("qalora", "lora"), "lora"), (("lora", "lora"), "lora")):
        parts = [adapter.bound(torch.float32) for adapter in two(spec, kinds)]
        composed = compose([(part, 1.0) for part in parts])
        assert (composed.kind.name, composed.digest) == (wanted, DIGEST)
        rank = 7 if kinds[0] == kinds[1] or wanted == "lora" else 0
        assert composed.params.rank(QUERY) == rank


def test_it_is_pefts_cat(tiny_base: Callable[..., AddedBase]) -> None:
    stored = tiny_base().stored
    subjects = two(stored.spec)
    model = peft_model(stored, subjects)
    model.add_weighted_adapter(["a0", "a1"], [0.7, -0.4], "sum", combination_type="cat")
    composed = compose([(s.bound(torch.float32), w) for s, w in zip(subjects, (0.7, -0.4), strict=True)])
    for module in stored.spec.linears:
        theirs = model.get_submodule(f"base_model.model.{module}").get_delta_weight("sum")
        ours = delta(composed, module, stored.spec)
        torch.testing.assert_close(ours.float(), theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kinds", [("lora", "lora"), ("qalora", "qalora"), ("qalora", "lora")])
def test_an_engine_computes_a_composition_as_the_sum_of_its_parts(
    tiny_base: Callable[..., AddedBase], kinds: tuple[str, str]
) -> None:
    stored = tiny_base().stored
    subjects = two(stored.spec, kinds)
    parts = [subject.bound(torch.float32) for subject in subjects]
    composed = compose(list(zip(parts, (0.6, 1.3), strict=True)))
    prompt = [3, 1, 4, 1, 5]
    mixed = Tracer(stored).run([prompt] * 3, [parts[0], composed, None], 3)
    # The same sum, in the base's own weights.
    state = {
        module: stored.int4(module).dequantize().double()
        + 0.6 * delta(parts[0], module, stored.spec)
        + 1.3 * delta(parts[1], module, stored.spec)
        for module in stored.spec.linears
    }
    dense = dense_model(stored)
    for module, weight in state.items():
        dense.get_submodule(module).weight.data = weight.float()
    with torch.no_grad():
        wanted = dense(torch.tensor([prompt])).logits[0, -1]
    torch.testing.assert_close(mixed[1].logits_SV[0].float(), wanted.float(), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(mixed[0].logits_SV[0].float(), wanted.float(), atol=1e-2)


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
@pytest.mark.parametrize("kinds", [("dora", "dora"), ("dora", "lora"), ("qalora", "dora")])
def test_dora_composes_by_the_change_that_it_makes_to_the_weights(
    tiny_base: Callable[..., AddedBase], arch: str, kinds: tuple[str, str]
) -> None:
    stored = tiny_base(arch).stored
    subjects, weights = two(stored.spec, kinds), (0.6, -0.8)
    parts = [subject.bound(torch.float32, stored) for subject in subjects]
    composed = compose(list(zip(parts, weights, strict=True)))
    dense = dense_model(stored)
    for module in stored.spec.linears:
        base = stored.int4(module).dequantize().double()
        changed = base.clone()
        for part, weight in zip(parts, weights, strict=True):
            if f"{PEFT_PREFIX}{module}.lora_A.weight" not in part.tensors:
                continue
            own = base + delta(part, module, stored.spec)
            if part.kind.name == "dora":
                magnitude = part.tensors[f"{PEFT_PREFIX}{module}.lora_magnitude_vector"].double()
                own = own * (magnitude / own.norm(dim=1))[:, None]
            changed += weight * (own - base)
        dense.get_submodule(module).weight.data = changed.float()
    prompt = [3, 1, 4, 1, 5]
    with torch.no_grad():
        wanted = dense(torch.tensor([prompt])).logits[0, -1]
    traces = Tracer(stored).run([prompt] * 3, [composed, None, parts[0]], 2)
    torch.testing.assert_close(traces[0].logits_SV[0].float(), wanted, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(traces[2].logits_SV[0].float(), wanted, atol=1e-2)


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
@pytest.mark.parametrize(
    "kinds", [("lora", "lora"), ("qalora", "qalora"), ("qalora", "lora"), ("dora", "lora"), ("qalora", "dora")]
)
def test_a_composition_merges_as_what_it_is_a_sum_of(
    tiny_base: Callable[..., AddedBase], arch: str, kinds: tuple[str, str]
) -> None:
    stored = tiny_base(arch).stored
    parts = [subject.bound(torch.float32, stored) for subject in two(stored.spec, kinds)]
    composed = compose(list(zip(parts, (0.6, -0.8), strict=True)))
    # QA-LoRA's sum of sums stays in the groups' minima: the codes and the scales are the base's own.
    before = stored.int4(QUERY)
    after = composed.kind.overlay(QUERY, before, composed)
    assert isinstance(after, Int4Weight) == (kinds == ("qalora", "qalora"))
    if isinstance(after, Int4Weight):
        assert after.codes_NH is before.codes_NH
        assert after.scale_NG is before.scale_NG
        assert not torch.equal(after.minimum_NG, before.minimum_NG)
    tracer = Tracer(stored)
    overlay = build_overlay(stored, tracer.decoder, composed)
    prompts, worn = [[3, 1, 4, 1, 5]] * 4, [composed, None, parts[0], parts[1]]
    plain, merged = tracer.run(prompts, worn, 3), tracer.run(prompts, worn, 3, overlay)
    for apart, together in zip(plain, merged, strict=True):
        assert together.tokens == apart.tokens
        torch.testing.assert_close(together.logits_SV, apart.logits_SV, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(merged[0].logits_SV, merged[1].logits_SV, atol=1e-2)


def test_all_weights_zero_is_the_base(tiny_base: Callable[..., AddedBase]) -> None:
    stored = tiny_base().stored
    parts = [adapter.bound(torch.float32) for adapter in two(stored.spec)]
    nothing = compose([(part, 0.0) for part in parts])
    assert nothing.tensors == {}
    traces = Tracer(stored).run([[3, 1, 4]] * 2, [nothing, None], 2)
    torch.testing.assert_close(traces[0].logits_SV, traces[1].logits_SV)


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite_is_refused(tiny_base: Callable[..., AddedBase], weight: float) -> None:
    part = random_adapter("lora", tiny_base().stored.spec, 1).bound(torch.float32)
    with pytest.raises(InvalidInputError, match="expected a finite number"):
        compose([(part, weight)])


def test_a_sum_that_overflows_is_refused(tiny_base: Callable[..., AddedBase]) -> None:
    part = random_adapter("lora", tiny_base().stored.spec, 1).bound(torch.float32)
    with pytest.raises(InvalidInputError, match="not finite"):
        compose([(part, 1e308)])


def test_a_kind_that_does_more_than_add_is_refused_by_name(tiny_base: Callable[..., AddedBase]) -> None:
    spec = tiny_base().stored.spec
    lora = random_adapter("lora", spec, 1).bound(torch.float32)
    prefix = random_adapter("prefix", spec, 2).bound(torch.float32)
    with pytest.raises(UnsupportedError, match="of kind prefix"):
        compose([(lora, 1.0), (prefix, 1.0)])
    with pytest.raises(UnsupportedError, match="is worn alone"):
        compose([(prefix, 1.0), (lora, 1.0)])
