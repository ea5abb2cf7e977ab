"""What this machine multiplies well."""

from __future__ import annotations

from functools import cache

import torch


@cache
def multiplies_bfloat16() -> bool:
    """Whether torch has products in bfloat16 for this CPU: with AVX-512 (or AVX-NE-CONVERT) by oneDNN. Without them it
    has loops that take up to eight times as long as its float32 products."""
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(has_onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def fast_dtype(device: torch.device) -> torch.dtype:
    """The dtype in which dense products are fastest there: bfloat16 on a GPU, and on a CPU that multiplies it."""
    return torch.bfloat16 if device.type != "cpu" or multiplies_bfloat16() else torch.float32
