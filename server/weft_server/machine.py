"""What this machine has, and how the engine is to use it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError, UnsupportedError
from weft_server.options import ServeOptions
from weft_server.torch_engine.engine import TorchEngineOptions

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def engine_options(options: ServeOptions, base: BaseSpec) -> TorchEngineOptions:
    """The engine's settings for this machine. Raises `InvalidInputError` for one that means nothing, and
    `UnsupportedError` for a device that is not here."""
    if options.dtype not in _DTYPES:
        raise InvalidInputError(f"--dtype {options.dtype}: expected one of {', '.join(_DTYPES)}")
    for name in ("max_batch_size", "max_prefill_tokens", "max_waiting", "kv_bytes", "adapter_bytes"):
        if getattr(options, name) < 1:
            raise InvalidInputError(f"{name}: {getattr(options, name)} is not positive")
    device, dtype = _device(options.device), _DTYPES[options.dtype]
    return TorchEngineOptions(
        device=device,
        dtype=dtype,
        copies=device.type == "cpu" and dtype == torch.bfloat16 and _copies(options.copies, base),
        max_batch_size=options.max_batch_size,
        max_prefill_tokens=options.max_prefill_tokens,
        max_waiting=options.max_waiting,
        kv_bytes=options.kv_bytes,
        overlay_bytes=options.overlay_bytes,
        num_threads=options.threads or os.cpu_count() or 1,
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidInputError(f"--device {name}: {error}") from error
    if device.type not in ("cpu", "cuda"):
        raise UnsupportedError(f"--device {name}: the torch engine runs on cpu and cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError(f"--device {name}: torch sees no CUDA device here; leave --device out to use the CPU")
    return device


def _copies(choice: str, base: BaseSpec) -> bool:
    if choice in ("always", "never"):
        return choice == "always"
    if choice != "auto":
        raise InvalidInputError(f"--copies {choice}: expected auto, always or never")
    wanted = 2 * sum(n_out * n_in for n_out, n_in in base.linears.values())
    return wanted <= _free_bytes() // 4


def _free_bytes() -> int:
    """Memory that can be taken without swapping, where the system says."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
