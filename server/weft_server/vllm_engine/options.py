"""How the vLLM engine is to use the machine. No vLLM here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEFAULT_MAX_LORA_RANK = 32


@dataclass(frozen=True)
class VllmEngineOptions:
    """Settings of one engine; `arguments` are vLLM's own and go first."""

    cache: Path
    """Where what vLLM reads is written: the base in its layout (kept), adapters (until they are released)."""
    dtype: str = "bfloat16"
    max_batch_size: int = 32
    max_prefill_tokens: int | None = None
    """Prompt tokens of a step; None leaves it to vLLM."""
    max_waiting: int = 1024
    max_active_adapters: int = 64
    """Different adapters in one batch, at most: vLLM reserves a slot of the largest rank for each."""
    kv_bytes: int | None = None
    """For keys and values; None leaves it to vLLM, which takes what is left of a GPU."""
    adapter_bytes: int = 1 << 30
    """For adapters in memory, slots included: half of it at most is slots."""
    overlay_bytes: int = 1 << 30
    num_threads: int = 0
    """CPU threads of a step; 0 takes every core."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Fields of vLLM's AsyncEngineArgs, as `arguments.parse` answers them."""

    @property
    def item_bytes(self) -> int:
        """Bytes of one number in `dtype`."""
        return 4 if self.dtype == "float32" else 2
