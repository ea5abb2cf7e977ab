"""The symmetric half of an int4 weight where vLLM has no kernel for it: in float32, the parity mode, and on CPUs
without AVX-512.

Stands where `versions.symmetric_int4_kernel` answers one of vLLM's own, and keeps `scale * (code - 8)` dense.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weft_adapters.int4 import unpack_codes
from weft_server.vllm_engine.base.names import PACKED, SCALE


class DenseSymmetric:
    """`y = x (scale * (code - 8))^T`, with the two methods of vLLM's `MPLinearKernel` that a layer calls."""

    def __init__(self, group_size: int) -> None:
        self._group_size = group_size

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Replaces the codes by the dense product of codes and scales; the scales stay as they are."""
        packed, scale_NG = getattr(layer, PACKED), getattr(layer, SCALE).data
        codes_NGk = unpack_codes(packed.data.view(torch.uint8)).view(*scale_NG.shape, self._group_size)
        dense_NGk = (codes_NGk.to(scale_NG.dtype) - 8) * scale_NG[..., None]
        # The parameter keeps its name: vLLM's LoRA looks for it.
        setattr(layer, PACKED, nn.Parameter(dense_NGk.flatten(1), requires_grad=False))

    def apply_weights(self, layer: nn.Module, x: Tensor, bias_N: Tensor | None = None) -> Tensor:
        """(..., K) to (..., N)."""
        return torch.nn.functional.linear(x, getattr(layer, PACKED), bias_N)
