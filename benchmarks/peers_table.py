"""Which engines are compared, how each is set up, and which of their rates become ratios."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
THREADS = os.cpu_count() or 1
RANK = 8
NUM_ADAPTERS = 8
BATCHES = (1, 8, 32)
CONTEXT = 160
"""Tokens of one request, prompt and completion, with some room."""


@dataclass(frozen=True)
class Peer:
    """One engine in one setting."""

    name: str
    module: str
    """In benchmarks/peers."""
    venv: Path
    target: str
    """The make target that installs it."""
    adapters: bool
    """Whether its rows wear the LoRA adapters, row i the adapter i modulo their number."""
    batches: tuple[int, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def python(self) -> Path:
        """The interpreter of its environment."""
        return self.venv / "bin" / "python"

    @property
    def installed(self) -> bool:
        """Whether its environment was made to the end."""
        return (self.venv / ".complete").exists()


_VLLM = ROOT / ".cache" / "peers-vllm"
_LLAMA = ROOT / ".cache" / "peers-llama"
_OWN = ROOT / ".venv"
_INSTALL = "make bench-peers-venv"

_VLLM_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # "auto" would leave one core of two to the front end, which is this same process.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # 0.32 cannot read back what this saves, and would compile at every start.
    "VLLM_USE_AOT_COMPILE": "0",
    "VLLM_CACHE_ROOT": str(_VLLM / "cache"),
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": str(THREADS),
    # Its documentation: Intel's OpenMP, loaded before torch's own.
    "LD_PRELOAD": str(_VLLM / "lib" / "libiomp5.so"),
}
# Measured with 1, 8 and 32 sequences: flash attention and a cache for each sequence are the fastest of the four.
_LLAMA_SETTINGS = {"flash_attn": 1, "kv_unified": False}

PEERS = (
    Peer("vllm_base", "vllm_peer", _VLLM, _INSTALL, False, BATCHES, {"eager": False}, _VLLM_ENVIRONMENT),
    Peer("vllm_lora8", "vllm_peer", _VLLM, _INSTALL, True, (8, 32), {"eager": False}, _VLLM_ENVIRONMENT),
    Peer("peft_lora8", "peft_peer", _OWN, "make venv", True, (8, 32)),
    Peer("llamacpp_q4_1_base", "llamacpp_peer", _LLAMA, _INSTALL, False, BATCHES, {**_LLAMA_SETTINGS, "quantize": ""}),
    Peer(
        "llamacpp_q4_0_base", "llamacpp_peer", _LLAMA, _INSTALL, False, BATCHES, {**_LLAMA_SETTINGS, "quantize": "q4_0"}
    ),
)


@dataclass(frozen=True)
class Comparison:
    """Weft's rate over a peer's, at one batch size."""

    metric: str
    ours: str
    """"base" or "lora8"."""
    peer: str
    batch: int


COMPARISONS = (
    Comparison("base_over_vllm_b1", "base", "vllm_base", 1),
    Comparison("base_over_vllm_b8", "base", "vllm_base", 8),
    Comparison("base_over_vllm_b32", "base", "vllm_base", 32),
    Comparison("lora8_over_vllm_lora8_b8", "lora8", "vllm_lora8", 8),
    Comparison("lora8_over_vllm_lora8_b32", "lora8", "vllm_lora8", 32),
    Comparison("lora8_over_peft_b8", "lora8", "peft_lora8", 8),
    Comparison("lora8_over_peft_b32", "lora8", "peft_lora8", 32),
    Comparison("base_over_llamacpp_q4_1_b1", "base", "llamacpp_q4_1_base", 1),
    Comparison("base_over_llamacpp_q4_1_b8", "base", "llamacpp_q4_1_base", 8),
    Comparison("base_over_llamacpp_q4_1_b32", "base", "llamacpp_q4_1_base", 32),
    Comparison("base_over_llamacpp_q4_0_b1", "base", "llamacpp_q4_0_base", 1),
    Comparison("lora8_over_llamacpp_q4_0_base_b8", "lora8", "llamacpp_q4_0_base", 8),
    Comparison("lora8_over_llamacpp_q4_0_base_b32", "lora8", "llamacpp_q4_0_base", 32),
)
