"""What this machine has, and how the engine is to use it."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import torch

from weft_adapters.base.load import StoredBase
from weft_adapters.base.store import MODEL_FILE
from weft_adapters.products import dense_item_bytes
from weft_registry.errors import InvalidInputError, UnsupportedError
from weft_server.memory_plan import STACK_FACTOR, MemoryPlan, Needs, base_bytes, plan_memory, step_bytes
from weft_server.options import ServeOptions
from weft_server.torch_engine.engine import TorchEngineOptions
from weft_server.torch_engine.native.choose import native_library

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def native_kernels(options: ServeOptions, base: StoredBase) -> tuple[Path | None, str]:
    """The native decoder's library, built if need be, or None to compute with torch; and why, in words.

    Raises `UnsupportedError` where `--kernels native` asks for what cannot be here.
    """
    if options.kernels not in ("auto", "native", "torch"):
        raise InvalidInputError(f"--kernels {options.kernels}: expected auto, native or torch")
    if options.kernels == "torch":
        return None, "torch kernels, as asked"
    try:
        if _device(options.device).type != "cpu" or _dtype(options.dtype) != torch.bfloat16:
            raise UnsupportedError("the native decoder computes in bfloat16 on a CPU", reason="NOT_NATIVE")
        return native_library(base, options.home.cache / "native"), "native kernels"
    except UnsupportedError as error:
        if options.kernels == "native":
            raise
        return None, f"torch kernels ({error})"


def memory_plan(options: ServeOptions, base: StoredBase, *, native: bool) -> MemoryPlan:
    """Where this server's memory goes. Call it once everything is imported and nothing is loaded.

    Raises `InvalidInputError` for a setting that means nothing, `NotEnoughMemoryError` for a budget that is too small,
    and `UnsupportedError` for a device that is not here, or a budget where the device has memory of its own.
    """
    numbers = "memory_bytes kv_bytes adapter_bytes disk_bytes max_prefill_tokens max_batch_size"
    for name in numbers.split():
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InvalidInputError(f"{name}: {value} is not positive")
    device, dtype, spec = _device(options.device), _dtype(options.dtype), base.spec
    if options.memory_bytes is not None and device.type != "cpu":
        raise UnsupportedError(
            f"--memory counts what the process has resident, and on {device} the model lies in the device's memory: "
            "give --kv-memory, --adapter-memory and --overlay-memory instead"
        )
    if native and options.copies == "always":
        raise InvalidInputError("--copies always: native kernels use no copies; leave it out, or add --kernels torch")
    copies_possible = device.type == "cpu" and dtype == torch.bfloat16 and not native
    dense_bytes = dense_item_bytes(device, dtype)
    copy_bytes = dense_bytes * sum(n_out * n_in for n_out, n_in in spec.linears.values()) if copies_possible else 0
    rows = max(options.max_prefill_tokens, TorchEngineOptions.max_idle_prefill_tokens) + options.max_batch_size
    needs = Needs(
        process_bytes=resident_bytes(),
        base_bytes=base_bytes(spec, dtype.itemsize, dense_bytes, tied=base.config.tie_word_embeddings),
        copy_bytes=copy_bytes,
        file_bytes=(base.path / MODEL_FILE).stat().st_size,
        step_bytes=step_bytes(spec, rows, options.max_batch_size),
        token_bytes=2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * dtype.itemsize,
        context_length=spec.context_length,
        stack_factor=0 if native else STACK_FACTOR * dense_bytes // dtype.itemsize,
    )
    undecided = copies_possible and options.memory_bytes is not None and options.copies == "auto"
    copies = copies_possible and not undecided and _copies(options.copies, copy_bytes)
    return plan_memory(options, needs, copies=None if undecided else copies)


def resident_bytes() -> int:
    """What this process has resident now; where the system does not say, the most that it ever had."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def engine_options(options: ServeOptions, plan: MemoryPlan, native: Path | None) -> TorchEngineOptions:
    """The engine's settings for this machine. Raises `InvalidInputError` for one that means nothing, and
    `UnsupportedError` for a device that is not here."""
    for name in ("max_batch_size", "max_prefill_tokens", "max_active_adapters", "max_waiting"):
        if getattr(options, name) < 1:
            raise InvalidInputError(f"{name}: {getattr(options, name)} is not positive")
    return TorchEngineOptions(
        device=_device(options.device),
        dtype=_dtype(options.dtype),
        copies=plan.copies,
        max_batch_size=options.max_batch_size,
        max_prefill_tokens=options.max_prefill_tokens,
        max_active_adapters=options.max_active_adapters,
        max_waiting=options.max_waiting,
        kv_bytes=plan.kv_bytes,
        overlay_bytes=plan.overlay_bytes,
        num_threads=options.threads or os.cpu_count() or 1,
        native=native,
    )


def _dtype(name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise InvalidInputError(f"--dtype {name}: expected one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


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


def _copies(choice: str, wanted: int) -> bool:
    if choice in ("always", "never"):
        return choice == "always"
    if choice != "auto":
        raise InvalidInputError(f"--copies {choice}: expected auto, always or never")
    return wanted <= _free_bytes() // 4


def _free_bytes() -> int:
    """Memory that can be taken without swapping, where the system says."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
