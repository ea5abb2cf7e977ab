"""The native linear operator against its formula in float64: `y = W x + bias + scale B (A x)`, row by row."""

import ctypes
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.server import native
from weft_adapters.int4 import Int4Weight, pack_codes
from weft_server.torch_engine.native import layout
from weft_server.torch_engine.native.library import Team, built, unsupported_here
from weft_server.torch_engine.native.low_rank import blocked
from weft_server.torch_engine.native.memory import Arena
from weft_server.torch_engine.native.weights import NativeWeight, dense_bytes, dense_weight, int4_bytes, int4_weight

GROUP = 32


@dataclass(frozen=True)
class Factors:
    """One adapter at one module."""

    a: Tensor
    b: Tensor
    scale: float
    pooled: bool


def random_weight(n_out: int, n_in: int, generator: torch.Generator) -> Int4Weight:
    codes = torch.randint(0, 16, (n_out, n_in), generator=generator).to(torch.uint8)
    scale = torch.rand(n_out, n_in // GROUP, generator=generator).half() * 0.02
    minimum = torch.randn(n_out, n_in // GROUP, generator=generator).half() * 0.1
    return Int4Weight(pack_codes(codes), scale, minimum)


def random_factors(rank: int, n_out: int, n_in: int, pooled: bool, generator: torch.Generator) -> Factors:
    a = torch.randn(rank, n_in // GROUP if pooled else n_in, generator=generator).bfloat16()
    return Factors(a, torch.randn(n_out, rank, generator=generator).bfloat16(), 0.37, pooled)


def expected(
    dense: Tensor,
    bias: Tensor | None,
    x: Tensor,
    wearers: list[int],
    adapters: list[list[Factors | None]],
    ends: list[int],
) -> tuple[Tensor, Tensor]:
    """The outputs in float64, and the sum of the sizes of their terms, which is what rounding is relative to."""
    wide = x.double()
    y, size = wide @ dense.double().t(), wide.abs() @ dense.double().abs().t()
    if bias is not None:
        y += bias.double()
    begins = [0, *ends[:-1]]
    for row, wearer in enumerate(wearers):
        for factors, begin, end in zip(adapters[wearer] if wearer >= 0 else [], begins, ends, strict=False):
            if factors is None:
                continue
            source = wide[row].view(-1, GROUP).sum(-1) if factors.pooled else wide[row]
            low = factors.a.double() @ source
            y[row, begin:end] += factors.scale * factors.b.double() @ low
            size[row, begin:end] += factors.scale * factors.b.double().abs() @ (factors.a.double().abs() @ source.abs())
    return y, 2**-8 * (y.abs() + size)


class Bench:
    """One linear operator with everything that it reads."""

    def __init__(self, threads: int) -> None:
        reason = unsupported_here()
        if reason is not None:
            pytest.skip(reason)
        self._team = Team(built(native.BUILT), threads)

    def run(
        self,
        weight: NativeWeight,
        x: Tensor,
        wearers: list[int],
        adapters: list[list[Factors | None]],
        ends: list[int],
        merged: tuple[NativeWeight, int] | None = None,
    ) -> Tensor:
        rows, n_out = x.shape[0], ends[-1]
        table = np.zeros((len(ends), max(1, len(adapters))), layout.LOW_RANK)
        kept: list[object] = []
        ranks = 2
        for slot, modules in enumerate(adapters):
            offset = 0
            for module, factors in enumerate(modules):
                if factors is None:
                    continue
                arena = Arena(1 << 20)
                a, b = arena.put(factors.a), arena.put(blocked([factors.b])[0])
                kept += [a, b]
                rank = a.shape[0]
                table[module, slot] = (a.data_ptr(), b.data_ptr(), rank, factors.pooled, factors.scale, offset)
                offset += rank + rank % 2
            ranks = max(ranks, offset)
        groups = x.shape[1] // GROUP
        pool = x.float().view(rows, groups, GROUP).sum(-1)
        pooled = pool.bfloat16()
        low = torch.full((rows, ranks), float("nan"), dtype=torch.bfloat16)
        out = torch.full((rows, n_out), float("nan"), dtype=torch.bfloat16)
        slot_T = np.array(wearers, np.int32)
        runs = [(w, wearers.index(w), len(wearers) - wearers[::-1].index(w), 0) for w in sorted(set(wearers) - {-1})]
        segments = np.array(runs, np.int32)
        step = layout.Step(
            num_rows=rows,
            num_merged=merged[1] if merged else 0,
            num_segments=len(runs),
            num_slots=table.shape[1],
            slot=slot_T.ctypes.data,
            segments=segments.ctypes.data,
            low_rank=table.ctypes.data,
            pool=pool.data_ptr(),
            pooled=pooled.data_ptr(),
            low=low.data_ptr(),
            low_stride=ranks,
            pool_stride=groups,
        )
        op = layout.Linear(
            step=ctypes.addressof(step),
            weight=weight.address,
            merged=merged[0].address if merged else None,
            input=x.data_ptr(),
            output=out.data_ptr(),
            num_modules=len(ends),
            module_end=(ctypes.c_int32 * layout.MOST_MODULES)(*ends),
        )
        kinds = layout.OPERATORS[layout.Linear]
        self._team.run((layout.Op * len(kinds))(*(layout.Op(kind, 0, ctypes.addressof(op)) for kind in kinds)))
        return out


def assert_close(found: Tensor, y: Tensor, tolerance: Tensor) -> None:
    assert ((found.double() - y).abs() <= tolerance).all()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 33, 200])
def test_outputs_are_the_formula(rows: int, threads: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    ends, n_in = [64, 96, 160], 96
    weight = random_weight(ends[-1], n_in, generator)
    bias = torch.randn(ends[-1], generator=generator)
    x = torch.randn(rows, n_in, generator=generator).bfloat16()
    sizes = [64, 32, 64]
    adapters: list[list[Factors | None]] = [
        [random_factors(rank, n, n_in, pooled, generator) for n in sizes]
        for rank, pooled in ((8, False), (5, True), (1, False), (64, False), (3, True))
    ]
    adapters[1][1] = adapters[2][0] = None
    # Wearers in runs, as a step has them, some rows of the base at the end.
    wearers = sorted(i * 7 % 6 for i in range(rows))
    wearers = [w if w < 5 else -1 for w in wearers]
    arena = Arena(int4_bytes(ends[-1], n_in, GROUP))
    found = Bench(threads).run(int4_weight(weight, bias, arena), x, wearers, adapters, ends)
    y, tolerance = expected(weight.dequantize(torch.float64), bias, x, wearers, adapters, ends)
    assert_close(found, y, tolerance)


@pytest.mark.parametrize("form", ["minimum", "scale and minimum", "dense"])
def test_merged_rows_take_the_merged_weight_and_bias(form: str) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = random_weight(64, 64, generator)
    x = torch.randn(20, 64, generator=generator).bfloat16()
    minimum = weight.minimum_NG.float() + torch.randn(weight.minimum_NG.shape, generator=generator)
    after = weight.with_minimum(minimum)
    if form == "scale and minimum":
        # No float16 could hold these scales.
        after = weight.scaled(1e-6 * torch.randn(64, 1, generator=generator))
    merged = after.dequantize(torch.float64)
    bias, merged_bias = torch.randn(64, generator=generator), torch.randn(64, generator=generator)
    base = int4_weight(weight, bias, Arena(int4_bytes(64, 64, GROUP)))
    if form == "dense":
        merged = merged.bfloat16().double()
        other: NativeWeight = dense_weight(merged, GROUP, merged_bias, Arena(dense_bytes(64, 64)))
    else:
        other = base.merged(weight, after, merged_bias)
        tensors = 2 if form == "scale and minimum" else 1
        assert other.size_bytes == tensors * 4 * minimum.numel()
    factors = random_factors(4, 64, 64, False, generator)
    wearers = [-1] * 9 + [0] * 6 + [-1] * 5
    found = Bench(2).run(base, x, wearers, [[factors]], [64], merged=(other, 9))
    y, tolerance = expected(weight.dequantize(torch.float64), bias, x, wearers, [[factors]], [64])
    first, first_tolerance = expected(merged, merged_bias, x[:9], [-1] * 9, [], [64])
    assert_close(found[9:], y[9:], tolerance[9:])
    assert_close(found[:9], first, first_tolerance)


def test_workers_that_come_late_or_not_at_all_are_not_waited_for_and_do_no_harm() -> None:
    generator = torch.Generator().manual_seed(2)
    weight = random_weight(256, 96, generator)
    x = torch.randn(40, 96, generator=generator).bfloat16()
    adapters: list[list[Factors | None]] = [[random_factors(8, 256, 96, False, generator)] for _ in range(5)]
    wearers = [row // 8 for row in range(40)]
    kernel = int4_weight(weight, None, Arena(int4_bytes(256, 96, GROUP)))
    alone = Bench(1).run(kernel, x, wearers, adapters, [256])
    # Far more workers than cores: most find a program over, or another one under way, whenever they get their turn.
    crowd = Bench(40)
    for _ in range(200):
        assert torch.equal(crowd.run(kernel, x, wearers, adapters, [256]), alone)
