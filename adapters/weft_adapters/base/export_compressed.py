"""A stored base in the format `compressed-tensors` (pack-quantized, asymmetric int4), for software that knows no Weft.

That format has integer zero points, `w = scale (code - zero)`, and ours a float minimum, `w = scale code + minimum`. A
group keeps its codes where its minimum is a multiple of its scale, and is quantized anew where not. So the result is
not the base: `export_cost` says how far from it. Adapters made for the base are made for other weights than these, and
QA-LoRA adapters cannot be merged into them.

Legend: N outputs, K inputs, G groups, g inputs a group.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weft_adapters.base.export import DTYPE, TensorShapes, write_model_directory
from weft_adapters.base.load import StoredBase
from weft_adapters.int4 import Int4Weight, pack_codes
from weft_registry.errors import UnsupportedError

_LARGEST = 15
"""The largest code, and the largest zero point."""
_FACTORS = (0.84, 0.88, 0.92, 0.95, 0.98, 1.0, 1.02, 1.05, 1.08, 1.12)
"""The scales tried for a group, over the smallest that spans it."""


class CompressedTensors:
    """The tensors of one linear layer. Implements `weft_adapters.base.export.LinearFormat`."""

    def shapes(self, module: str, n_out: int, n_in: int, group_size: int) -> TensorShapes:
        """See `LinearFormat`. Raises `UnsupportedError` for a layer whose zero points do not pack."""
        if n_out % 8:
            raise UnsupportedError(f"{module} has {n_out} outputs; compressed-tensors packs zero points in eights")
        return {
            f"{module}.weight_packed": (torch.int32, (n_out, n_in // 8)),
            f"{module}.weight_scale": (torch.float16, (n_out, n_in // group_size)),
            f"{module}.weight_zero_point": (torch.int32, (n_out // 8, n_in // group_size)),
            f"{module}.weight_shape": (torch.int64, (2,)),
        }

    def tensors(self, module: str, weight: Int4Weight) -> Mapping[str, Tensor]:
        """See `LinearFormat`. Zero points are packed along the outputs, codes along the inputs, lowest bits first."""
        code_NK, scale_NG, zero_NG = with_integer_zeros(weight)
        return {
            f"{module}.weight_packed": pack_codes(code_NK).view(torch.int32),
            f"{module}.weight_scale": scale_NG,
            f"{module}.weight_zero_point": pack_codes(zero_NG.t().contiguous()).view(torch.int32).t().contiguous(),
            f"{module}.weight_shape": torch.tensor(weight.shape),
        }


def with_integer_zeros(weight: Int4Weight) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 (N, K), scales float16 (N, G) and zero points uint8 (N, G) near `weight`.

    Of a few scales for each group the one with the least sum of squared errors of its weights.
    """
    n_out, n_in = weight.shape
    w_NGg = weight.dequantize().view(n_out, -1, weight.group_size)
    low_NG, high_NG = w_NGg.amin(-1).clamp(max=0), w_NGg.amax(-1).clamp(min=0)
    spread_NG = (high_NG - low_NG) / _LARGEST
    # The old scale first, for where the minimum is a multiple of it nothing needs to change.
    scales = [weight.scale_NG.float(), *(spread_NG * factor for factor in _FACTORS)]
    best_NG = torch.full_like(spread_NG, torch.inf)
    code_NGg, zero_NG, scale_NG = torch.zeros_like(w_NGg), torch.zeros_like(spread_NG), torch.ones_like(spread_NG)
    for candidate_NG in scales:
        # Rounded as it will be stored; one that rounds to nothing stands for a group that does.
        rounded_NG = candidate_NG.half().float()
        rounded_NG = torch.where(rounded_NG == 0, torch.ones_like(rounded_NG), rounded_NG)
        zeros_NG = (-low_NG / rounded_NG).round().clamp(0, _LARGEST)
        codes_NGg = ((w_NGg / rounded_NG[..., None]).round() + zeros_NG[..., None]).clamp(0, _LARGEST)
        error_NGg = (codes_NGg - zeros_NG[..., None]) * rounded_NG[..., None] - w_NGg
        cost_NG = error_NGg.square().sum(-1)
        better_NG = cost_NG < best_NG
        best_NG = torch.where(better_NG, cost_NG, best_NG)
        zero_NG = torch.where(better_NG, zeros_NG, zero_NG)
        scale_NG = torch.where(better_NG, rounded_NG, scale_NG)
        code_NGg = torch.where(better_NG[..., None], codes_NGg, code_NGg)
    return code_NGg.to(torch.uint8).view(n_out, n_in), scale_NG.half(), zero_NG.to(torch.uint8)


def exported_weight(weight: Int4Weight) -> Int4Weight:
    """The weight that `with_integer_zeros` makes of `weight`, as one of ours: its minimum is `-zero scale`, float32."""
    code_NK, scale_NG, zero_NG = with_integer_zeros(weight)
    return Int4Weight(pack_codes(code_NK), scale_NG, -zero_NG.float() * scale_NG.float())


def export_compressed_tensors(base: StoredBase, directory: Path) -> None:
    """Writes `base` into the empty `directory`."""
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": False,
        "strategy": "group",
        "group_size": base.spec.fingerprint.quant.group_size,
        "dynamic": False,
    }
    quantization: dict[str, Any] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }
    write_model_directory(base, directory, CompressedTensors(), quantization, DTYPE)
