"""What `weft serve` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field

from weft_registry.home import Home

GIB = 1 << 30


@dataclass(frozen=True)
class ServeOptions:
    """The settings of one server."""

    base: str
    """The name that the base model was added under."""
    host: str = "127.0.0.1"
    port: int = 50051
    """0 picks a free one; the line `ready on HOST:PORT` says which."""
    registry: str | None = None
    """HOST:PORT of a registry elsewhere; None hosts the embedded one."""
    engine: str = "torch"
    device: str = "auto"
    """"cpu", "cuda", "cuda:1"; "auto" takes CUDA when there is one."""
    dtype: str = "bfloat16"
    """"float32" is the parity mode: slower, and equal to a reference up to float32 rounding."""
    threads: int = 0
    """CPU threads of the engine; 0 takes every core."""
    copies: str = "auto"
    """Packed bfloat16 copies of the base beside the int4 weights, on a CPU: "auto" when they take less than a quarter
    of the free memory, "always", "never"."""
    max_batch_size: int = 32
    max_prefill_tokens: int = 1024
    max_waiting: int = 1024
    kv_bytes: int = 2 * GIB
    """For the keys and values of running requests; taken as they run."""
    adapter_bytes: int = 1 * GIB
    """For adapters in memory; the least recently used go first."""
    overlay_bytes: int = 1 * GIB
    """For merged weights."""
    grace_s: float = 10.0
    """How long a stopping server lets running requests go on."""
    home: Home = field(default_factory=Home.from_environment)
