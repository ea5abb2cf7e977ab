"""Integer zero points in place of float minima: where they fit nothing is lost, where they do not the group is anew."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny_models import AddedBase
from weft_adapters.base.export_compressed import export_compressed_tensors, exported_weight, with_integer_zeros
from weft_adapters.base.export_cost import PROMPTS, logits_cost
from weft_adapters.base.store import MODEL_FILE
from weft_adapters.int4 import Int4Weight, pack_codes

GROUP = 32


def weight(scale: float, minimum: float, rows: int = 8) -> Int4Weight:
    """Every code twice in each group."""
    codes = torch.arange(GROUP).remainder(16).to(torch.uint8).expand(rows, GROUP).contiguous()
    full = torch.ones(rows, 1, dtype=torch.float16)
    return Int4Weight(pack_codes(codes), full * scale, full * minimum)


@pytest.mark.parametrize("zero", [0, 3, 15])
def test_a_minimum_that_is_a_multiple_of_its_scale_costs_nothing(zero: int) -> None:
    exact = weight(0.5, -0.5 * zero)
    assert torch.equal(exported_weight(exact).dequantize(), exact.dequantize())


@pytest.mark.parametrize(
    ("scale", "minimum"), [(0.5, -1.9), (0.25, -0.1), (0.1, 2.0), (0.1, -9.0), (0.0, 0.7), (0.0, 0.0)]
)
def test_no_weight_moves_by_more_than_a_step_of_the_grid(scale: float, minimum: float) -> None:
    exact = weight(scale, minimum)
    codes, scales, zeros = with_integer_zeros(exact)
    assert codes.max() <= 15
    assert zeros.max() <= 15
    assert torch.isfinite(scales).all()
    moved = (exported_weight(exact).dequantize() - exact.dequantize()).abs().max()
    low, high = min(minimum, 0.0), max(minimum + 15 * scale, 0.0)
    assert moved <= 1.2 * (high - low) / 15 + 1e-3


def test_the_chosen_grid_is_nearer_than_rounded_zero_points() -> None:
    torch.manual_seed(1)
    codes = torch.randint(0, 16, (64, 256), dtype=torch.uint8)
    scale = torch.rand(64, 8).half() * 0.1 + 0.01
    exact = Int4Weight(pack_codes(codes), scale, (-scale * 7 - torch.rand(64, 8) * scale).half())
    zeros = (-exact.minimum_NG.float() / scale.float()).round()
    rounded = Int4Weight(exact.codes_NH, scale, -zeros * scale.float())
    error = [(w.dequantize() - exact.dequantize()).square().mean() for w in (exported_weight(exact), rounded)]
    assert error[0] < 0.9 * error[1]


def test_the_directory_has_what_its_configuration_says(tiny_base: Callable[..., AddedBase], tmp_path: Path) -> None:
    base = tiny_base("llama").stored
    export_compressed_tensors(base, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert config["config_groups"]["group_0"]["weights"]["group_size"] == base.spec.fingerprint.quant.group_size
    tensors = load_file(tmp_path / MODEL_FILE)
    for module, (n_out, n_in) in base.spec.linears.items():
        assert tensors[f"{module}.weight_packed"].shape == (n_out, n_in // 8)
        assert tensors[f"{module}.weight_zero_point"].shape == (n_out // 8, n_in // 32)
        assert tensors[f"{module}.weight_shape"].tolist() == [n_out, n_in]
    assert (tmp_path / "tokenizer.json").is_file()


def test_the_cost_of_no_change_is_nothing_and_of_an_export_is_something(tiny_base: Callable[..., AddedBase]) -> None:
    base = tiny_base("llama").stored
    nothing, something = (logits_cost(base, change) for change in (lambda weight: weight, exported_weight))
    assert (nothing.largest, nothing.mean, nothing.same_first) == (0, 0, 1)
    assert something.largest > something.mean > 0
    assert something.positions > len(PROMPTS)
