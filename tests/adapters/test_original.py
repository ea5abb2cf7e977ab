from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny_models import AddedBase
from weft_adapters.base.gptq import gptq
from weft_adapters.base.original import lost
from weft_adapters.base.quantize import quantize
from weft_adapters.int4 import Int4Weight
from weft_registry.errors import InvalidInputError

WIDE = {"hidden_size": 128, "head_dim": 32, "num_hidden_layers": 1}


@pytest.mark.parametrize("times", [1 / 8, 8.0])
def test_a_calibrated_bases_original_is_taken_and_no_larger_or_smaller_model(
    times: float, tiny_base: Callable[..., AddedBase], tiny_source: Callable[..., Path]
) -> None:
    base, original = tiny_base(**WIDE), tiny_source(**WIDE)
    floats = load_file(str(original / "model.safetensors"))

    def calibrated(module: str) -> Int4Weight:
        # Inputs that are much alike: errors travel far.
        x = torch.randn(64, 16) @ torch.randn(16, base.stored.spec.linears[module][1])
        return gptq(floats[f"{module}.weight"], x.T @ x, 128, module, bits=2)

    stored = SimpleNamespace(spec=tiny_base(bits=2, group_size=128, **WIDE).stored.spec, int4=calibrated)
    module = "model.layers.0.self_attn.q_proj"
    weight = floats[f"{module}.weight"]
    off = lost(stored, module, weight, "here")  # type: ignore[arg-type]
    nearest = weight - quantize(weight, 128, module, 2).dequantize()
    assert float(off.norm()) > 1.05 * float(nearest.norm()), "calibration moved what is lost"
    with pytest.raises(InvalidInputError, match=r"^here differs"):
        lost(stored, module, times * torch.randn(weight.shape) * weight.std(), "here")  # type: ignore[arg-type]
