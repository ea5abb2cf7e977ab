"""The batched low-rank operator against a float64 loop, over the popularity mixes that a server sees."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from weft_adapters.kinds import KINDS, low_rank
from weft_adapters.kinds.kind import Adapter, LinearSite
from weft_adapters.segments import Segments
from weft_registry.kinds.low_rank import PEFT_PREFIX, LowRankParams
from weft_registry.kinds.qalora import QaLoraParams

GROUP = 32
SITE = LinearSite(("layer.q", "layer.k", "layer.v"), (96, 32, 32), 64)

Mix = Callable[[int, int], list[int]]
MIXES: dict[str, Mix] = {
    "identical": lambda rows, n: [0] * rows,
    "uniform": lambda rows, n: [random.Random(1).randrange(-1, n) for _ in range(rows)],
    "zipf": lambda rows, n: [min(n - 1, int(random.Random(i).paretovariate(1)) - 1) for i in range(rows)],
    "distinct": lambda rows, n: [i % n for i in range(rows)],
    "base only": lambda rows, n: [-1] * rows,
    "neighbours": lambda rows, n: sorted(i % n for i in range(rows)),
}


def make_adapter(kind: str, seed: int, rank: int, modules: Sequence[str] = SITE.modules) -> Adapter[Any]:
    generator = torch.Generator().manual_seed(seed)
    pooled = SITE.in_features // (GROUP if kind == "qalora" else 1)
    tensors = {}
    for module in modules:
        n_out = SITE.out_features[SITE.modules.index(module)]
        tensors[f"{PEFT_PREFIX}{module}.lora_A.weight"] = torch.randn(rank, pooled, generator=generator)
        tensors[f"{PEFT_PREFIX}{module}.lora_B.weight"] = torch.randn(n_out, rank, generator=generator)
    shared = {
        "r": rank,
        "alpha": 3.0 * rank + seed,
        "use_rslora": seed % 2 == 1,
        "target_modules": tuple(modules),
        "rank_pattern": {},
        "alpha_pattern": {modules[0]: 5.0},
    }
    params: LowRankParams = QaLoraParams(**shared, group_size=GROUP) if kind == "qalora" else LowRankParams(**shared)
    return Adapter(f"sha256:{seed:064d}", KINDS[kind], params, tensors)


def loop(adapters: Sequence[Adapter[Any]], x: Tensor, y: Tensor, adapter_of_row: Sequence[int]) -> Tensor:
    """`y[t] += s B A pool(x[t])` for each row, module by module, in float64."""
    y = y.double().clone()
    for row, index in enumerate(adapter_of_row):
        if index < 0:
            continue
        adapter, start = adapters[index], 0
        for module, n_out in zip(SITE.modules, SITE.out_features, strict=True):
            a = adapter.tensors.get(f"{PEFT_PREFIX}{module}.lora_A.weight")
            if a is not None:
                b = adapter.tensors[f"{PEFT_PREFIX}{module}.lora_B.weight"]
                pooled = x[row].double().view(a.shape[1], -1).sum(-1)
                y[row, start : start + n_out] += adapter.params.scaling(module) * (b.double() @ (a.double() @ pooled))
            start += n_out
    return y


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("kind", ["lora", "qalora"])
@pytest.mark.parametrize("call_flops", [0.0, 1e30], ids=["segments", "rank-concat"])
def test_batched_delta_equals_a_loop_over_rows(
    mix: str, kind: str, call_flops: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(low_rank, "_CALL_FLOPS", call_flops)
    ranks = (4, 16, 64, 128)
    adapters = [make_adapter(kind, seed, rank) for seed, rank in enumerate(ranks)]
    adapters[2] = make_adapter(kind, 2, 64, SITE.modules[1:])
    adapter_of_row = MIXES[mix](23, len(adapters))
    x, y = torch.randn(23, SITE.in_features), torch.randn(23, sum(SITE.out_features))
    expected = loop(adapters, x, y, adapter_of_row)
    pack = KINDS[kind].pack(adapters, SITE)
    assert pack is not None
    pack.apply(x, y, Segments(adapter_of_row))
    # Float32 rounding grows with the largest terms of a sum, not with what is left when they cancel.
    assert (y.double() - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_rows_of_other_kinds_are_left_alone() -> None:
    lora = make_adapter("lora", 1, 8)
    pack = KINDS["lora"].pack([None, lora, None], SITE)
    assert pack is not None
    x, y = torch.randn(6, SITE.in_features), torch.randn(6, sum(SITE.out_features))
    before = y.clone()
    pack.apply(x, y, Segments([0, 1, 2, -1, 1, 0]))
    assert torch.equal(y[[0, 2, 3, 5]], before[[0, 2, 3, 5]])
    assert not torch.equal(y[[1, 4]], before[[1, 4]])


def test_an_adapter_without_modules_at_the_site_makes_no_pack() -> None:
    elsewhere = LinearSite(("layer.o",), (64,), 64)
    assert KINDS["lora"].pack([make_adapter("lora", 1, 8)], elsewhere) is None


def test_nothing_is_padded_to_the_largest_rank() -> None:
    adapters = [make_adapter("lora", seed, rank) for seed, rank in enumerate((4, 128))]
    pack = KINDS["lora"].pack(adapters, SITE)
    assert isinstance(pack, low_rank.LowRankPack)
    assert pack.b_RN.shape[0] == 3 * (4 + 128)


def test_segments_answer_slices_for_neighbours_and_indices_otherwise() -> None:
    segments = Segments([2, 2, -1, 0, 2, 0])
    rows = segments.rows(2)
    assert isinstance(rows, Tensor)
    assert rows.tolist() == [0, 1, 4]
    assert Segments([-1, 3, 3]).rows(3) == slice(1, 3)
    assert segments.counts == {0: 2, 2: 3}
