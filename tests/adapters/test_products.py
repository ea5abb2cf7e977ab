from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.tiny_models import AddedBase
from weft_adapters import processor
from weft_adapters.products import PackedProduct, WidenedProduct, dense_item_bytes, dense_product
from weft_server.torch_engine.kernels import CpuInt4Kernel, KernelFactory

CPU = torch.device("cpu")


@pytest.fixture(params=["bfloat16 products", "none"])
def multiplies(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the processor multiplies bfloat16: as this one does if it does, and as one that does not."""
    if request.param == "none":
        monkeypatch.setattr("weft_adapters.products.multiplies_bfloat16", lambda: False)
        return False
    if not processor.multiplies_bfloat16():
        pytest.skip("this processor multiplies no bfloat16")
    return True


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("biased", [False, True])
def test_a_bfloat16_product_is_float64s_rounded(rows: int, biased: bool, multiplies: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, weight = (torch.randn(n, 96, generator=generator).bfloat16() for n in (rows, 64))
    bias = torch.randn(64, generator=generator).bfloat16() if biased else None
    product = dense_product(weight, bias)
    assert isinstance(product, PackedProduct if multiplies else WidenedProduct)
    assert product.size_bytes == weight.numel() * dense_item_bytes(CPU, torch.bfloat16)
    wanted = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    found = product(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), wanted, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("rows", [1, 8, 40])
def test_an_int4_weight_and_its_copy_multiply_alike(
    rows: int, multiplies: bool, tiny_base: Callable[..., AddedBase]
) -> None:
    stored = tiny_base().stored
    weight = stored.int4("model.layers.0.self_attn.q_proj")
    exact = weight.dequantize().double()
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(rows, weight.shape[1], generator=generator).bfloat16()
    for copies in (False, True):
        kernel = KernelFactory(CPU, torch.bfloat16, copies).base(weight, None)
        assert isinstance(kernel, CpuInt4Kernel)
        near = (kernel(x).double() - x.double() @ exact.T).abs().max()
        assert near < 0.02 * (x.double() @ exact.T).abs().max()


def test_the_fastest_dtype_is_bfloat16_only_where_it_is_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    for multiplies, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(processor, "multiplies_bfloat16", lambda found=multiplies: found)
        assert processor.fast_dtype(CPU) == dtype
        assert processor.fast_dtype(torch.device("cuda")) == torch.bfloat16
