"""Rows of the base model in a batch with adapters: the mended kernels, and the test that finds those that are not."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from weft_server.vllm_engine import base_rows

ROWS = torch.tensor([0, -1, 2, 1, -1])


@pytest.fixture
def stock() -> Iterator[Any]:
    """vLLM's CPU kernels as they come, for the length of a test."""
    modules = [importlib.import_module(name) for name in base_rows._MODULES]
    before = [{name: vars(module)[name] for name in base_rows._EXPANDS if name in vars(module)} for module in modules]
    originals = {name: getattr(f, "__wrapped__", f) for name, f in before[0].items()}
    for module, names in zip(modules, before, strict=True):
        for name in names:
            setattr(module, name, originals[name])
    yield modules[0]
    for module, names in zip(modules, before, strict=True):
        for name, function in names.items():
            setattr(module, name, function)


def test_the_mended_kernels_add_each_rows_own_delta_and_nothing_to_base_rows(stock: Any) -> None:
    base_rows.patch()
    b_SNr, x_Br = torch.randn(3, 8, 4), torch.randn(5, 4)
    # What a shrink left in a base row may be anything.
    x_Br[1] = float("nan")
    y_BN, expected_BN = torch.ones(5, 8), torch.ones(5, 8)
    for row, slot in enumerate(ROWS.tolist()):
        if slot >= 0:
            expected_BN[row] += b_SNr[slot] @ x_Br[row]
    stock.bgmv_expand(x_Br, b_SNr, y_BN, ROWS, add_inputs=True)
    assert torch.allclose(y_BN, expected_BN, atol=1e-5)
    sliced_BN = torch.ones(5, 24)
    stock.bgmv_expand_slice(x_Br, b_SNr, sliced_BN, ROWS, 8, 8, add_inputs=True)
    assert torch.allclose(sliced_BN[:, 8:16], expected_BN, atol=1e-5)
    assert (sliced_BN[:, :8] == 1).all()
    assert (sliced_BN[:, 16:] == 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_self_test_passes_on_mended_kernels_and_mending_again_changes_nothing(
    stock: Any, dtype: torch.dtype
) -> None:
    config = SimpleNamespace(max_loras=3, max_lora_rank=8, lora_dtype=dtype)
    base_rows.patch()
    assert not base_rows.patch()
    assert base_rows.base_rows_untouched(config, torch.device("cpu"))


def test_the_self_test_finds_kernels_that_give_base_rows_the_last_slot(stock: Any, monkeypatch: Any) -> None:
    from vllm.lora.punica_wrapper import punica_cpu

    def last_slot(inputs: Any, weights: Any, output: Any, indices: Any, offset: int, size: int, add: bool) -> None:
        output[:, offset : offset + size] += torch.einsum("bi,boi->bo", inputs, weights[indices].squeeze(1).float())

    monkeypatch.setattr(punica_cpu, "bgmv_expand_slice", last_slot)
    config = SimpleNamespace(max_loras=3, max_lora_rank=8, lora_dtype=torch.float32)
    assert not base_rows.base_rows_untouched(config, torch.device("cpu"))
