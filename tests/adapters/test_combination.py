"""Combination against PEFT's `add_weighted_adapter`, and against loops over single entries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.oracles import peft_model
from benchmarks.subjects import RandomAdapter, random_adapter
from tests.tiny_models import AddedBase
from weft_adapters.combination import METHODS, Combined, Recipe, combine
from weft_adapters.composition import compose_low_rank
from weft_registry.errors import InvalidInputError
from weft_registry.kinds.low_rank import PEFT_PREFIX

WEIGHTS = (0.7, -0.4, 1.2)
SEED = 5


def subjects(base: AddedBase, kind: str = "lora", count: int = 3, ranks: tuple[int, ...] = (4, 4, 4)) -> list[Any]:
    """The second leaves the MLPs alone, and each has a scaling of its own."""
    spec = base.stored.spec
    attention = [module for module in spec.linears if "self_attn" in module]
    found = []
    for seed in range(count):
        made = random_adapter(
            kind, spec, seed, rank=ranks[seed], strength=0.1, targets=attention if seed == 1 else None
        )
        found.append(replace(made, params=replace(made.params, alpha=2.0 + 3 * seed)))
    return found


def merged(parts: list[RandomAdapter], recipe: Recipe, base: AddedBase) -> Combined:
    bound = [(part.bound(torch.float32), weight) for part, weight in zip(parts, WEIGHTS, strict=False)]
    return combine(bound, recipe, list(base.stored.spec.linears))


def delta(combined: Combined, module: str) -> Tensor:
    a, b = (combined.tensors[f"{PEFT_PREFIX}{module}.lora_{x}.weight"] for x in "AB")
    product: Tensor = combined.params.scaling(module) * b.double() @ a.double()
    return product


def recipe(method: str) -> Recipe:
    return Recipe(
        method,
        density=0.5 if "ties" in method or "dare" in method else None,
        seed=SEED if "dare" in method else None,
        rank=3 if method.endswith("svd") else None,
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_the_adapter_that_peft_makes(
    tiny_base: Callable[..., AddedBase], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    base = tiny_base()
    parts, how = subjects(base), recipe(method)
    model = peft_model(base.stored, parts)
    # The new layer's initial values come from the global generator first; what DARE drops is to come from ours.
    draw, generator = torch.bernoulli, torch.Generator().manual_seed(SEED)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "bernoulli", lambda input: draw(input, generator=generator))
        model.add_weighted_adapter(
            ["a0", "a1", "a2"], list(WEIGHTS), "merged", combination_type=method, density=how.density, svd_rank=how.rank
        )
    ours = merged(parts, how, base)
    assert ours.kind == "lora"
    for module in base.stored.spec.linears:
        layer = model.get_submodule(f"base_model.model.{module}")
        theirs = layer.get_delta_weight("merged")
        torch.testing.assert_close(delta(ours, module).float(), theirs, rtol=1e-4, atol=2e-6)
        if not method.endswith("svd") and method != "cat":
            # Not only the product: the same A and B, whatever was drawn.
            for x in ("lora_A", "lora_B"):
                mine = ours.tensors[f"{PEFT_PREFIX}{module}.{x}.weight"]
                torch.testing.assert_close(mine, getattr(layer, x)["merged"].weight.data, rtol=1e-6, atol=1e-7)


def test_parts_of_different_ranks_make_what_peft_makes(tiny_base: Callable[..., AddedBase]) -> None:
    base = tiny_base()
    parts = subjects(base, ranks=(2, 3, 5))
    model = peft_model(base.stored, parts)
    for method, rank in (("cat", None), ("svd", 4)):
        model.add_weighted_adapter(["a0", "a1", "a2"], list(WEIGHTS), method, combination_type=method, svd_rank=rank)
        ours = merged(parts, Recipe(method, rank=rank), base)
        for module in base.stored.spec.linears:
            theirs = model.get_submodule(f"base_model.model.{module}").get_delta_weight(method)
            torch.testing.assert_close(delta(ours, module).float(), theirs, rtol=1e-4, atol=2e-6)
    module = "model.layers.0.mlp.down_proj"
    assert merged(parts, Recipe("cat"), base).params.rank(module) == 7
    assert merged(parts, Recipe("svd"), base).params.rank(module) == 5, "the highest rank of any part"


@pytest.mark.parametrize("method", ["linear", "ties", "dare_linear", "dare_ties"])
def test_adding_factors_of_different_ranks_is_refused_by_module(
    tiny_base: Callable[..., AddedBase], method: str
) -> None:
    base = tiny_base()
    with pytest.raises(InvalidInputError, match=r"q_proj: .* the parts have 2, 3, 5; use cat or svd"):
        merged(subjects(base, ranks=(2, 3, 5)), recipe(method), base)


def test_ties_trims_elects_and_averages_entry_by_entry(tiny_base: Callable[..., AddedBase]) -> None:
    base = tiny_base()
    parts = subjects(base)
    module = "model.layers.1.self_attn.v_proj"
    name = f"{PEFT_PREFIX}{module}.lora_B.weight"
    kept = []
    for part in parts:
        tensor = part.tensors[name]
        least = tensor.abs().flatten().sort().values[-(tensor.numel() // 2)]
        kept.append(torch.where(tensor.abs() >= least, tensor, 0.0))
    roots = [abs(w * part.params.scaling(module)) ** 0.5 for w, part in zip(WEIGHTS, parts, strict=True)]
    ours = merged(parts, Recipe("ties", density=0.5), base).tensors[name]
    for row in range(ours.shape[0]):
        for column in range(ours.shape[1]):
            values = [float(tensor[row, column]) for tensor in kept]
            sign = 1.0 if sum(values) >= 0 else -1.0
            agreeing = [root * value for root, value in zip(roots, values, strict=True) if value * sign > 0]
            wanted = sum(agreeing) / max(len(agreeing), 1)
            assert float(ours[row, column]) == pytest.approx(wanted, rel=1e-5, abs=1e-7)


def test_dare_keeps_the_expectation_and_follows_its_seed(tiny_base: Callable[..., AddedBase]) -> None:
    base = tiny_base()
    parts = subjects(base, count=1)
    module = "model.layers.0.mlp.up_proj"
    whole = delta(merged(parts, Recipe("svd"), base), module)
    draws = [
        delta(merged(parts, Recipe("dare_linear_svd", density=0.5, seed=seed, rank=64), base), module)
        for seed in range(100)
    ]
    off = torch.stack(draws).mean(0) - whole
    # An entry is zero or doubled: its standard deviation is itself, and a tenth of it over a hundred draws.
    assert float(off.norm() / whole.norm()) == pytest.approx(0.1, rel=0.1)
    again = delta(merged(parts, Recipe("dare_linear_svd", density=0.5, seed=0, rank=64), base), module)
    assert torch.equal(again, draws[0])
    assert not torch.equal(draws[1], draws[0])


@pytest.mark.parametrize("method", METHODS)
def test_qalora_adapters_combine_to_one_over_the_same_groups(tiny_base: Callable[..., AddedBase], method: str) -> None:
    base = tiny_base()
    parts = subjects(base, "qalora")
    ours = merged(parts, recipe(method), base)
    group = base.stored.spec.fingerprint.quant.group_size
    assert (ours.kind, ours.params.group_size) == ("qalora", group)
    module = "model.layers.0.mlp.down_proj"
    if method == "cat":
        composed = compose_low_rank(
            [(p.bound(torch.float32), w) for p, w in zip(parts, WEIGHTS, strict=True)], "sha256:" + "0" * 64
        )
        assert torch.equal(
            composed.tensors[f"{PEFT_PREFIX}{module}.lora_A.weight"],
            ours.tensors[f"{PEFT_PREFIX}{module}.lora_A.weight"],
        )
    assert ours.tensors[f"{PEFT_PREFIX}{module}.lora_A.weight"].shape[1] == 128 // group


def test_lora_and_qalora_combine_to_lora(tiny_base: Callable[..., AddedBase]) -> None:
    base = tiny_base()
    parts = [subjects(base)[0], subjects(base, "qalora")[0]]
    ours = merged(parts, Recipe("cat"), base)
    assert ours.kind == "lora"
    module = "model.layers.0.mlp.down_proj"
    a, b = (parts[1].tensors[f"{PEFT_PREFIX}{module}.lora_{x}.weight"].double() for x in "AB")
    pooled = torch.kron(a, torch.ones(1, base.stored.spec.fingerprint.quant.group_size))
    first = WEIGHTS[0] * delta(merged(parts[:1], Recipe("cat"), base), module) / WEIGHTS[0]
    wanted = first + WEIGHTS[1] * parts[1].params.scaling(module) * b @ pooled
    torch.testing.assert_close(delta(ours, module), wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"method": "slerp"}, "not one of linear"),
        ({"method": "ties"}, "ties needs one"),
        ({"method": "linear", "density": 0.5}, "linear has none"),
        ({"method": "ties", "density": 0.0}, "density: 0.0"),
        ({"method": "dare_ties", "density": 1.5}, "density: 1.5"),
        ({"method": "ties", "density": 0.5, "seed": 1}, "draws nothing"),
        ({"method": "cat", "rank": 4}, "only svd truncates"),
        ({"method": "svd", "rank": 0}, "rank: 0"),
    ],
)
def test_a_setting_without_effect_or_out_of_bounds_is_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        Recipe(**arguments)


def test_parts_that_cancel_out_are_refused(tiny_base: Callable[..., AddedBase]) -> None:
    base = tiny_base()
    part = subjects(base)[0].bound(torch.float32)
    with pytest.raises(InvalidInputError, match="cancel out"):
        combine([(part, 1.0), (part, -1.0)], Recipe("svd"), list(base.stored.spec.linears))


@pytest.mark.parametrize("method", METHODS)
def test_parts_without_weight_are_refused_by_every_method(tiny_base: Callable[..., AddedBase], method: str) -> None:
    base = tiny_base()
    parts = [(part.bound(torch.float32), 0.0) for part in subjects(base)]
    with pytest.raises(InvalidInputError, match="nothing is left of any module; give other weights"):
        combine(parts, recipe(method), list(base.stored.spec.linears))


@pytest.mark.parametrize(
    ("method", "weights"), [("cat", (1.0, -1.0)), ("linear", (1.0, -1.0)), ("cat", (0.1, 0.2, -0.3))]
)
def test_factors_whose_product_is_only_rounding_are_refused_and_small_ones_are_not(
    tiny_base: Callable[..., AddedBase], method: str, weights: tuple[float, ...]
) -> None:
    base = tiny_base()
    part, modules = subjects(base)[0].bound(torch.float32), list(base.stored.spec.linears)
    with pytest.raises(InvalidInputError, match="cancel out"):
        combine([(part, weight) for weight in weights], Recipe(method), modules)
    # A thousandth that is left is no rounding, nor is an adapter that is small altogether.
    combine([(part, 1.0), (part, -0.999)], Recipe(method), modules)
    combine([(part, 1e-20)], Recipe(method), modules)


@pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties", "ties_svd", "dare_linear_svd", "dare_ties_svd"])
def test_a_density_that_keeps_nothing_is_refused_with_the_smallest_that_does(
    tiny_base: Callable[..., AddedBase], method: str
) -> None:
    base = tiny_base()
    parts = subjects(base)
    # The smallest are keys' and values' B (32, 4), and their products (32, 64).
    least = "0.000489" if method.endswith("svd") else "0.00782"
    with pytest.raises(InvalidInputError, match=rf"density: 0\.0001 keeps none of .*[kv]_proj; .* is {least}$"):
        merged(parts, Recipe(method, density=1e-4), base)
    merged(parts, Recipe(method, density=float(least)), base)


def test_a_rank_that_no_adapter_may_have_is_refused(tiny_base: Callable[..., AddedBase]) -> None:
    base = tiny_base()
    part = subjects(base)[0].bound(torch.float32)
    with pytest.raises(InvalidInputError, match=r"rank 1028.*use svd"):
        combine([(part, 1.0)] * 257, Recipe("cat"), list(base.stored.spec.linears))
