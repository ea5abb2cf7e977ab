"""Calibrated quantization: against a loop in float64 that follows the paper's algorithm, and against rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from weft_adapters.base.gptq import gptq
from weft_adapters.base.quantize import quantize
from weft_adapters.int4 import Int4Weight
from weft_registry.errors import InvalidInputError


def gptq_loop(weight_NK: Tensor, hessian_KK: Tensor, group_size: int, bits: int) -> Tensor:
    """The rounded weight, one column after the other, each step solved from H^-1 of the columns that are left
    (arXiv:2210.17323, eq. 2 and 3), in float64 and without blocks or Cholesky factors."""
    w, top = weight_NK.double().clone(), 2**bits - 1
    h = hessian_KK.double().clone()
    h += 0.01 * h.diagonal().mean() * torch.eye(h.shape[0], dtype=torch.float64)
    rounded = torch.zeros_like(w)
    for k in range(w.shape[1]):
        if k % group_size == 0:
            group = w[:, k : k + group_size]
            minimum = group.amin(1).half().double()
            scale = ((group.amax(1) - group.amin(1)) / top).half().double()
        rounded[:, k] = ((w[:, k] - minimum) / scale).round().clamp(0, top) * scale + minimum
        inverse = torch.linalg.inv(h[k:, k:])
        w[:, k:] -= ((w[:, k] - rounded[:, k]) / inverse[0, 0])[:, None] * inverse[0]
    return rounded


def case(rows: int = 5, inputs: int = 256) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, the inputs it sees, and the sum of their products: neighbouring inputs are alike, as they are in
    models."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.eye(inputs) + 0.4 * torch.randn(inputs, inputs, generator=generator) / inputs**0.5
    x_TK = torch.randn(600, inputs, generator=generator).cumsum(1) / 8 @ mixing
    return torch.randn(rows, inputs, generator=generator), x_TK, (x_TK.t() @ x_TK).double()


def output_error(weight_NK: Tensor, found: Int4Weight, x_TK: Tensor) -> float:
    """What quantization does to the layer's outputs, in relation to them."""
    return float((x_TK @ (weight_NK - found.dequantize()).t()).norm() / (x_TK @ weight_NK.t()).norm())


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group_size", [32, 128])
def test_equals_the_loop(bits: int, group_size: int) -> None:
    weight_NK, _, hessian_KK = case()
    found = gptq(weight_NK, hessian_KK, group_size, "w", bits)
    expected = gptq_loop(weight_NK, hessian_KK, group_size, bits)
    assert int(found.codes().max()) <= 2**bits - 1
    # float32 against float64: a weight that stands between two codes may go either way, and those after it with it.
    different = (found.dequantize() - expected).abs() > 1e-3 * expected.abs().max()
    assert different.float().mean() < 0.02
    _, x_TK, _ = case()
    near = (x_TK.double() @ (weight_NK - expected).t()).norm() / (x_TK.double() @ weight_NK.double().t()).norm()
    assert output_error(weight_NK, found, x_TK) == pytest.approx(float(near), rel=0.02)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_outputs_move_less_than_with_rounding(bits: int) -> None:
    weight_NK, x_TK, hessian_KK = case(rows=32)
    calibrated = output_error(weight_NK, gptq(weight_NK, hessian_KK, 32, "w", bits), x_TK)
    rounded = output_error(weight_NK, quantize(weight_NK, 32, "w", bits), x_TK)
    assert calibrated < 0.6 * rounded


def test_inputs_that_calibration_never_saw_are_rounded_to_the_nearest() -> None:
    weight_NK, _, hessian_KK = case(inputs=64)
    hessian_KK[:32] = 0
    hessian_KK[:, :32] = 0
    hessian_KK += 0.0
    found, plain = gptq(weight_NK, hessian_KK, 32, "w"), quantize(weight_NK, 32, "w")
    assert torch.equal(found.codes()[:, :32], plain.codes()[:, :32])
    assert not torch.equal(found.codes()[:, 32:], plain.codes()[:, 32:])
    nothing = gptq(weight_NK, torch.zeros(64, 64), 32, "w")
    assert torch.equal(nothing.codes_NH, plain.codes_NH)


@pytest.mark.parametrize("what", ["weight", "hessian"])
def test_numbers_that_are_not_finite_are_refused_by_name(what: str) -> None:
    weight_NK, _, hessian_KK = case(inputs=64)
    (weight_NK if what == "weight" else hessian_KK)[1, 5] = float("nan")
    with pytest.raises(InvalidInputError, match=r"some\.weight"):
        gptq(weight_NK, hessian_KK, 32, "some.weight")
