"""How the embedded engine is set up wherever tests ask it for exact numbers."""

from __future__ import annotations

from typing import Any

import torch

from weft_server.torch_engine.engine import TorchEngineOptions


def exact_options(**options: Any) -> TorchEngineOptions:
    """Float32 on the CPU, eight rows a batch, a little room; `options` replace those of the same name."""
    usual: dict[str, Any] = {
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "copies": False,
        "max_batch_size": 8,
        "max_prefill_tokens": 256,
        "max_waiting": 64,
        "kv_bytes": 1 << 24,
        "overlay_bytes": 1 << 24,
    }
    return TorchEngineOptions(**usual | options)
