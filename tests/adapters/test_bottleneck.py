"""Bottleneck networks in a batch: a loop over rows beside the two fast ways, masks, stacks, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from weft_adapters.kinds import KINDS, bottleneck_network, fusion_pack
from weft_adapters.kinds.bottleneck import Bottleneck
from weft_adapters.kinds.fusion import Fusion
from weft_adapters.kinds.kind import Adapter, SublayerPack, SublayerSite
from weft_adapters.segments import Segments
from weft_registry.errors import InvalidInputError, UnsupportedError
from weft_registry.kinds import kind_schema
from weft_registry.kinds.bottleneck import NON_LINEARITIES, READS, BottleneckParams
from weft_registry.kinds.fusion import FusionParams
from weft_registry.reference import AdapterName, Reference

E = 24
SITE = SublayerSite(0, "mlp", E)
PARAMS = BottleneckParams(5, "relu", "sum", ("attention", "mlp"), (0, 1), 0.5)
FUNCTIONS: dict[str, Any] = {
    "relu": torch.nn.ReLU(),
    "gelu": torch.nn.GELU(),
    "gelu_new": torch.nn.GELU("tanh"),
    "silu": torch.nn.SiLU(),
    "swish": torch.nn.SiLU(),
    "tanh": torch.nn.Tanh(),
    "leakyrelu": torch.nn.LeakyReLU(),
}
# Two adapters alike, others that differ in what they read, in the function, in both.
MIXED = (
    PARAMS,
    replace(PARAMS, bottleneck_size=3, scaling=-2.0),
    replace(PARAMS, reads="residual"),
    replace(PARAMS, non_linearity="tanh", reads="input"),
    replace(PARAMS, non_linearity="gelu", places=("attention",)),
)


def adapter(params: BottleneckParams, seed: int, dtype: torch.dtype = torch.float32) -> Adapter[Any]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: (0.4 * torch.randn([E if n is None else n for n in spec.shape], generator=generator)).to(dtype)
        for name, spec in kind_schema("bottleneck").tensors(params, None).items()
    }
    return Adapter(f"sha256:{seed:064x}", KINDS["bottleneck"], params, tensors)


def fusion(parts: tuple[Adapter[Any], ...], value: bool, seed: int) -> Adapter[Any]:
    first: BottleneckParams = parts[0].params
    names = tuple(Reference(AdapterName("a", f"p{n}"), digest=part.digest) for n, part in enumerate(parts))
    params = FusionParams(names, first.reads, first.places, first.layers, value)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: 0.3 * torch.randn([E if n is None else n for n in spec.shape], generator=generator)
        for name, spec in kind_schema("fusion").tensors(params, None).items()
    }
    return Adapter(f"sha256:{seed:064x}", KINDS["fusion"], params, tensors, parts)


def delta(worn: Adapter[Any], seen: dict[str, Tensor]) -> Tensor:
    """One row's change by the written equation, in float64."""
    at = f"model.layers.{SITE.layer}.{SITE.place}."
    t = {name.removeprefix(at): tensor.double() for name, tensor in worn.tensors.items() if name.startswith(at)}
    z = seen[worn.params.reads]
    if isinstance(worn.params, BottleneckParams):
        h = FUNCTIONS[worn.params.non_linearity](t["adapter_down.weight"] @ z + t["adapter_down.bias"])
        change: Tensor = worn.params.scaling * (t["adapter_up.weight"] @ h + t["adapter_up.bias"])
        return change
    outputs = [delta(part, seen) for part in worn.parts]
    query = t["query.weight"] @ z + t["query.bias"]
    scores = torch.stack([query @ (t["key.weight"] @ u + t["key.bias"]) for u in outputs])
    values = [t["value.weight"] @ u for u in outputs] if worn.params.value else outputs
    return sum((p * v for p, v in zip(scores.softmax(0), values, strict=True)), torch.zeros(E).double())


def looped(worn: list[Adapter[Any]], rows: list[int], inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Row by row, adapter after adapter."""
    result = inputs[2].double()
    for row, index in enumerate(rows):
        if index == Segments.BASE:
            continue
        for one in worn[index].parts if not worn[index].tensors else (worn[index],):
            entered, residual, y = inputs[0][row].double(), inputs[1][row].double(), result[row].clone()
            if SITE.place not in one.params.places or SITE.layer not in one.params.layers:
                continue
            seen = {"output": y, "sum": residual + y, "residual": residual, "input": entered}
            result[row] = y + delta(one, seen)
    return result


def random_inputs(rows: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    entered, residual, y = (torch.randn(rows, E, generator=generator) for _ in range(3))
    return entered.to(dtype), residual, y.to(dtype)


def prepared(worn: Adapter[Any]) -> Adapter[Any]:
    """As an engine holds it. Neither kind asks the base for anything."""
    base: Any = None
    return worn.kind.prepare(worn, base)


def packs(worn: list[Adapter[Any]]) -> list[SublayerPack]:
    kinds = dict.fromkeys(one.kind for one in worn)
    held = [prepared(one) for one in worn]
    found = [kind.sublayer_pack([one if one.kind is kind else None for one in held], SITE) for kind in kinds]
    return [pack for pack in found if pack is not None]


def applied(worn: list[Adapter[Any]], rows: list[int], inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    y_TE = inputs[2].clone()
    for pack in packs(worn):
        pack.apply(inputs[0], inputs[1], y_TE, Segments(rows))
    return y_TE


ROWS = {
    "identical": [0] * 9,
    "distinct": [0, 1, 2, 3, 4, -1],
    "interleaved": [0, 1, -1, 0, 3, 1, 2, 0, -1, 4, 3, 1],
    "skewed": [1] * 40 + [0, 2, -1, 3],
    "none": [-1, -1],
}


@pytest.mark.parametrize("case", ROWS)
@pytest.mark.parametrize("way", ["shared", "segments"])
def test_both_ways_are_the_loop(case: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bottleneck_network, "_CALL_FLOPS", 1e18 if way == "shared" else -1.0)
    worn = [adapter(params, seed) for seed, params in enumerate(MIXED)]
    inputs = random_inputs(len(ROWS[case]))
    found = applied(worn, ROWS[case], inputs)
    torch.testing.assert_close(found.double(), looped(worn, ROWS[case], inputs), atol=1e-5, rtol=1e-5)
    for row, index in enumerate(ROWS[case]):
        if index in (Segments.BASE, 4):
            assert torch.equal(found[row], inputs[2][row])


@pytest.mark.parametrize("non_linearity", NON_LINEARITIES)
@pytest.mark.parametrize("reads", READS)
def test_every_function_of_everything_it_can_read(non_linearity: str, reads: str) -> None:
    worn = [adapter(replace(PARAMS, non_linearity=non_linearity, reads=reads), 7)]
    inputs = random_inputs(5)
    expected = looped(worn, [0, -1, 0, 0, -1], inputs)
    torch.testing.assert_close(applied(worn, [0, -1, 0, 0, -1], inputs).double(), expected, atol=1e-5, rtol=1e-5)


def test_a_float32_residual_is_added_before_it_is_rounded() -> None:
    worn = [adapter(PARAMS, 3, torch.bfloat16)]
    inputs = random_inputs(6, torch.bfloat16)
    exact = looped(worn, [0] * 6, inputs)
    found = applied(worn, [0] * 6, inputs)
    assert found.dtype == torch.bfloat16
    assert float((found.double() - exact).norm() / exact.norm()) < 0.01


@pytest.mark.parametrize("way", ["shared", "segments"])
def test_an_overflowing_neighbour_changes_nobody(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bottleneck_network, "_CALL_FLOPS", 1e18 if way == "shared" else -1.0)
    good, bad = adapter(PARAMS, 1), adapter(PARAMS, 2)
    bad = replace(bad, tensors={name: t * 1e30 if "down" in name else t for name, t in bad.tensors.items()})
    inputs = random_inputs(4)
    inputs[2][1] = float("nan")
    found = applied([good, bad], [0, 1, -1, 0], inputs)
    kept = [0, 2, 3]
    assert found[kept].isfinite().all()
    torch.testing.assert_close(
        found[kept].double(), looped([good, bad], [0, 1, -1, 0], inputs)[kept], atol=1e-5, rtol=1e-5
    )


def test_a_scaled_up_projection_that_overflows_is_refused() -> None:
    hot = adapter(replace(PARAMS, scaling=1e39), 1)
    with pytest.raises(InvalidInputError, match="adapter_up"):
        hot.kind.check(hot)


def test_composed_adapters_stack_in_order_with_their_weights() -> None:
    parts = [adapter(params, seed) for seed, params in enumerate((MIXED[0], MIXED[3], MIXED[4], MIXED[1]))]
    kind = KINDS["bottleneck"]
    one = kind.compose([(part, weight) for part, weight in zip(parts, (1.0, 0.5, 1.0, -1.0), strict=True)], "sha256:s")
    assert one.size_bytes == sum(part.size_bytes for part in parts)
    lone, rows = adapter(PARAMS, 9), [0, 1, -1, 0, 1]
    inputs = random_inputs(len(rows))
    found = applied([one, lone], rows, inputs)
    torch.testing.assert_close(found.double(), looped([one, lone], rows, inputs), atol=1e-5, rtol=1e-5)
    reordered = kind.compose([(part, 1.0) for part in reversed(parts)], "sha256:r")
    assert not torch.allclose(applied([reordered, lone], rows, inputs)[0], found[0], atol=1e-2)


def test_only_bottleneck_adapters_stack_and_a_fusion_does_not() -> None:
    part = adapter(PARAMS, 1)
    fused = fusion((part, adapter(PARAMS, 2)), True, 3)
    with pytest.raises(UnsupportedError, match="fusion"):
        KINDS["bottleneck"].compose([(part, 1.0), (fused, 1.0)], "sha256:x")
    with pytest.raises(UnsupportedError, match="fusion"):
        KINDS["fusion"].compose([(fused, 1.0), (part, 1.0)], "sha256:x")
    with pytest.raises(InvalidInputError, match="not finite"):
        KINDS["bottleneck"].compose([(part, 1e39)], "sha256:x")


WIDTHS = {"thin": (2, 3, 4), "square": (10, 12, 14)}


def fused_parts(form: str, seed: int) -> tuple[Adapter[Any], ...]:
    """Three parts, of two non-linearities; wide ones say as much as narrow ones."""
    return tuple(
        adapter(
            replace(
                PARAMS,
                bottleneck_size=size,
                scaling=(1.0 + n) / max(WIDTHS[form][0] - 3, 2),
                non_linearity=("relu", "tanh")[n // 2],
            ),
            seed + n,
        )
        for n, size in enumerate(WIDTHS[form])
    )


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("rows", [[0, -1, 0, 1, 2, 0, 3], [1, 1, -1], [2] * 5, [0] * 9 + [2] * 9, [-1]])
@pytest.mark.parametrize("form", WIDTHS)
@pytest.mark.parametrize("way", ["together", "alone"])
def test_a_fusion_is_its_equation_beside_others(
    form: str, value: bool, rows: list[int], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusion_pack, "_CALL_FLOPS", 1e18 if way == "together" else -1.0)
    parts, others = fused_parts(form, 0), fused_parts(form, 20)
    worn = [fusion(parts, value, 11), adapter(MIXED[3], 4), fusion(parts[:2], True, 12), fusion(others, value, 13)]
    inputs = random_inputs(len(rows))
    found = applied(worn, rows, inputs)
    torch.testing.assert_close(found.double(), looped(worn, rows, inputs), atol=1e-5, rtol=1e-5)
    for row, index in enumerate(rows):
        if index == Segments.BASE:
            assert torch.equal(found[row], inputs[2][row])


@pytest.mark.parametrize("form", WIDTHS)
@pytest.mark.parametrize("value", [True, False])
def test_a_fusion_is_bound_in_fewer_bytes_than_it_is_stored_in(form: str, value: bool) -> None:
    stored = fusion(fused_parts(form, 0), value, 11)
    held = prepared(stored)
    assert sum(part.size_bytes for part in held.parts) < held.size_bytes < stored.size_bytes
    assert any("thin_" in name for name in held.tensors) == (form == "thin")


def test_fusions_that_read_something_else_do_not_share_a_product() -> None:
    readers = [replace(PARAMS, bottleneck_size=2, reads=reads) for reads in ("sum", "output", "sum")]
    worn = [fusion((adapter(one, 2 * n), adapter(one, 2 * n + 1)), True, 30 + n) for n, one in enumerate(readers)]
    # One row each: whatever is added for one is what another reads of its own row only.
    inputs = random_inputs(4)
    found = applied(worn, [0, 1, 2, -1], inputs)
    torch.testing.assert_close(found.double(), looped(worn, [0, 1, 2, -1], inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("way", ["together", "alone"])
def test_a_fusions_overflowing_neighbour_changes_nobody(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion_pack, "_CALL_FLOPS", 1e18 if way == "together" else -1.0)
    good, bad = fusion(fused_parts("thin", 0), True, 11), fusion(fused_parts("thin", 20), True, 12)
    hot = tuple(
        replace(part, tensors={name: t * 1e30 if "down" in name else t for name, t in part.tensors.items()})
        for part in bad.parts
    )
    rows, inputs = [0, 1, -1, 0], random_inputs(4)
    inputs[2][1] = float("nan")
    found = applied([good, replace(bad, parts=hot)], rows, inputs)
    kept = [0, 2, 3]
    torch.testing.assert_close(found[kept].double(), looped([good, bad], rows, inputs)[kept], atol=1e-5, rtol=1e-5)


def test_a_fusion_whose_products_overflow_is_refused() -> None:
    whole = fusion(fused_parts("thin", 0), True, 11)
    hot = replace(whole, tensors={name: t * 1e30 for name, t in whole.tensors.items()})
    with pytest.raises(InvalidInputError, match=r"model\.layers\.0\.attention\.query.*not finite"):
        prepared(hot)


def test_a_fusion_with_other_parts_than_it_names_is_refused() -> None:
    parts = tuple(adapter(PARAMS, n) for n in range(2))
    whole = fusion(parts, True, 5)
    whole.kind.check(whole)
    for wrong in ((), parts[:1], parts[::-1]):
        with pytest.raises(InvalidInputError, match="was given the parts"):
            whole.kind.check(replace(whole, parts=wrong))
    other = replace(adapter(replace(PARAMS, reads="output"), 0), digest=parts[0].digest)
    with pytest.raises(InvalidInputError, match="reads"):
        whole.kind.check(replace(whole, parts=(other, parts[1])))


def test_where_nobody_stands_there_is_no_pack() -> None:
    nobody = [adapter(replace(PARAMS, layers=(1,)), 1), None]
    assert Bottleneck().sublayer_pack(nobody, SITE) is None
    assert Fusion().sublayer_pack([None], SITE) is None
