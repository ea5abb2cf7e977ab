"""Round-to-nearest against a loop in float64."""

from __future__ import annotations

import pytest
import torch

from weft_adapters.base.quantize import quantize
from weft_registry.errors import InvalidInputError


def quantize_loop(
    weight: torch.Tensor, group_size: int
) -> tuple[list[list[int]], list[list[float]], list[list[float]]]:
    """The definition, one weight at a time; Python floats are float64."""
    codes, scales, minima = [], [], []
    for row in weight.double().tolist():
        row_codes, row_scales, row_minima = [], [], []
        for start in range(0, len(row), group_size):
            group = row[start : start + group_size]
            minimum = torch.tensor(min(group), dtype=torch.float64).half().item()
            scale = torch.tensor((max(group) - min(group)) / 15, dtype=torch.float64).half().item()
            row_codes += [min(max(round((w - minimum) / scale), 0), 15) if scale else 0 for w in group]
            row_scales.append(scale)
            row_minima.append(minimum)
        codes.append(row_codes)
        scales.append(row_scales)
        minima.append(row_minima)
    return codes, scales, minima


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_equals_the_loop(group_size: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 256, generator=generator)
    weight[1] *= 1e-6
    weight[2] += 1000
    weight[3] = weight[3].abs()
    weight = weight.to(dtype)
    got = quantize(weight, group_size, "w")
    codes, scales, minima = quantize_loop(weight, group_size)
    assert got.codes().tolist() == codes
    assert got.scale_NG.double().tolist() == scales
    assert got.minimum_NG.double().tolist() == minima


def test_values_on_the_grid_come_back_exactly() -> None:
    codes = torch.arange(64).remainder(16).view(2, 32)
    dense = codes * 0.25 - 2.0
    assert torch.equal(quantize(dense, 32, "w").dequantize(), dense)


def test_constant_groups_keep_their_value() -> None:
    weight = torch.cat((torch.zeros(1, 32), torch.full((1, 32), -0.75), torch.full((1, 32), 3.0)))
    assert torch.equal(quantize(weight, 32, "w").dequantize(), weight)


def test_rows_in_many_chunks_equal_rows_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(9, 64, generator=torch.Generator().manual_seed(1))
    whole = quantize(weight, 32, "w")
    monkeypatch.setattr("weft_adapters.base.quantize._CHUNK_ELEMENTS", 2 * 64)
    parts = quantize(weight, 32, "w")
    assert torch.equal(whole.codes_NH, parts.codes_NH)
    assert torch.equal(whole.scale_NG, parts.scale_NG)
    assert torch.equal(whole.minimum_NG, parts.minimum_NG)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e6])
def test_values_that_cannot_be_stored_are_refused_by_name(bad: float) -> None:
    weight = torch.zeros(2, 32)
    weight[1, 5] = bad
    with pytest.raises(InvalidInputError, match=r"some\.weight"):
        quantize(weight, 32, "some.weight")
