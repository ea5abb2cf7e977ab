"""What `weft serve` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from weft_registry.access.options import AccessOptions
from weft_registry.home import Home

MIB = 1 << 20
GIB = 1 << 30
DEFAULT_KV_BYTES = 2 * GIB
DEFAULT_ADAPTER_BYTES = 1 * GIB
DEFAULT_OVERLAY_BYTES = 1 * GIB


@dataclass(frozen=True)
class ServeOptions:
    """The settings of one server."""

    base: str
    """The name that the base model was added under."""
    host: str = "127.0.0.1"
    port: int = 50051
    """0 picks a free one; the line `ready on HOST:PORT` says which."""
    metrics_port: int | None = None
    """For Prometheus, on `host`; 0 picks a free one, None has no such port."""
    http_port: int | None = None
    """For Hugging Face clients, on `host`, to read the embedded registry; 0 picks a free one, None has no such port."""
    registry: str | None = None
    """HOST:PORT of a registry elsewhere; None hosts the embedded one."""
    engine: str = "torch"
    device: str = "auto"
    """"cpu", "cuda", "cuda:1"; "auto" takes CUDA when there is one."""
    dtype: str = "bfloat16"
    """"float32" is the parity mode: slower, and equal to a reference up to float32 rounding."""
    threads: int = 0
    """CPU threads of the engine; 0 takes every core."""
    kernels: str = "auto"
    """"native": the decoder in C (CPUs with AVX-512 bfloat16); "torch"; "auto": native where it can be."""
    copies: str = "auto"
    """Dense copies of the base beside the int4 weights, on a CPU, in bfloat16, or in float32 where the processor
    multiplies no bfloat16: "auto" when they take less than a quarter of the free memory, "always", "never"."""
    vllm: tuple[str, ...] = ()
    """For the engine "vllm": fields of its AsyncEngineArgs, each as KEY=VALUE."""
    max_batch_size: int = 32
    max_prefill_tokens: int = 256
    """Prompt tokens of a step in which somebody is answering; a longer prompt is computed in pieces, so that it does
    not hold up the others."""
    max_active_adapters: int = 64
    """Different adapters in one batch."""
    max_waiting: int = 1024
    memory_bytes: int | None = None
    """For the whole process. What the next three are not given, they share out of it; without it they have defaults."""
    kv_bytes: int | None = None
    """For the keys and values of running requests; taken as they run."""
    adapter_bytes: int | None = None
    """For adapters in memory; the least recently used go first."""
    overlay_bytes: int | None = None
    """For merged weights, those in use and those kept ready."""
    disk_bytes: int = 10 * GIB
    """For pulled adapters on disk; the least recently used go first, and never one that is in memory."""
    preload: tuple[str, ...] = ()
    """References to bring into memory before the server is ready."""
    reload_interval_s: float = 5.0
    """How often alias references in use are looked up again; 0 looks them up at every request instead."""
    merge_policy: str = "off"
    """"auto" merges the adapter that most tokens come from and unmerges it when that is over; "off" leaves merging to
    people."""
    merge_share: float = 0.8
    """For "auto": the share of the tokens from which an adapter is merged."""
    merge_window_s: float = 10.0
    """For "auto": the time over which shares are taken, and the least time between two switches."""
    require_signature: tuple[Path, ...] = ()
    """Public keys in PEM: an adapter is loaded only if one of them has signed its version. None asks for nothing."""
    access: AccessOptions = field(default_factory=AccessOptions)
    """Who may do what, and whether it is encrypted."""
    grace_s: float = 10.0
    """How long a stopping server lets running requests go on."""
    home: Home = field(default_factory=Home.from_environment)
