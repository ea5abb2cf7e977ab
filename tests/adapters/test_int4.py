"""The int4 weight: packing, the formula, and gradients that stop at it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weft_adapters.int4 import Int4Linear, Int4Weight, pack_codes, unpack_codes


def random_weight(n_out: int, n_in: int, group: int, seed: int = 0) -> Int4Weight:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (n_out, n_in), generator=generator).to(torch.uint8)
    scale = torch.rand(n_out, n_in // group, generator=generator).half() * 0.1
    minimum = -torch.rand(n_out, n_in // group, generator=generator).half()
    return Int4Weight(pack_codes(codes), scale, minimum)


@given(st.integers(1, 5), st.integers(1, 40))
def test_packing_is_undone_by_unpacking(n_out: int, half: int) -> None:
    codes = torch.randint(0, 16, (n_out, 2 * half)).to(torch.uint8)
    assert torch.equal(unpack_codes(pack_codes(codes)), codes)


def test_dequantize_is_the_formula() -> None:
    weight = random_weight(6, 64, 16)
    codes = weight.codes()
    for n in range(6):
        for k in range(64):
            want = weight.scale_NG[n, k // 16].double() * codes[n, k].item() + weight.minimum_NG[n, k // 16].double()
            assert weight.dequantize()[n, k].item() == pytest.approx(want.item(), rel=1e-6, abs=1e-7)


def test_another_minimum_shares_codes_and_leaves_the_original_alone() -> None:
    weight = random_weight(4, 32, 32)
    before = weight.minimum_NG.clone()
    merged = weight.with_minimum(weight.minimum_NG.float() + 1)
    assert merged.codes_NH is weight.codes_NH
    assert torch.equal(weight.minimum_NG, before)
    torch.testing.assert_close(merged.dequantize(), weight.dequantize() + 1)
    with pytest.raises(ValueError, match="expected"):
        weight.with_minimum(torch.zeros(4, 2))


def test_codes_must_be_bytes_in_pairs() -> None:
    with pytest.raises(ValueError, match="uint8"):
        pack_codes(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="even"):
        pack_codes(torch.zeros(2, 3, dtype=torch.uint8))


def test_gradient_flows_to_the_input_as_through_the_dense_weight() -> None:
    weight = random_weight(8, 64, 32)
    linear = Int4Linear(weight, torch.randn(8))
    x = torch.randn(3, 5, 64, requires_grad=True)
    reference = x.detach().clone().requires_grad_()
    linear(x).square().sum().backward()
    bias = linear.get_buffer("bias")
    torch.nn.functional.linear(reference, weight.dequantize(), bias).square().sum().backward()
    torch.testing.assert_close(x.grad, reference.grad)
    assert not list(linear.parameters())


def test_casting_a_model_does_not_round_the_stored_scales() -> None:
    linear = Int4Linear(random_weight(8, 64, 32))
    before = linear.get_buffer("scale").clone()
    torch.nn.Sequential(linear).to(torch.bfloat16)
    assert linear.get_buffer("scale").dtype == torch.float16
    assert torch.equal(linear.get_buffer("scale"), before)
