"""What to lower when memory runs out, with the numbers that were used."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from weft_registry.errors import ExhaustedError
from weft_trainer.config.run import TrainConfig

_ALLOCATOR = ("can't allocate memory", "Cannot allocate memory", "not enough memory")


@contextmanager
def explaining_out_of_memory(config: TrainConfig, longest: int) -> Iterator[None]:
    """Turns running out of memory, the GPU's or the machine's, into `ExhaustedError`. `longest` is the longest
    example in tokens."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise ExhaustedError(advice(config, longest, _used(error)), reason="OUT_OF_MEMORY") from error


def advice(config: TrainConfig, longest: int, used: str) -> str:
    """What to lower, in the order of what it costs."""
    training, options = config.training, []
    if training.batch_size > 1:
        accumulation = training.gradient_accumulation
        options.append(
            f"training.batch_size={training.batch_size // 2} with training.gradient_accumulation={2 * accumulation} "
            f"(now {training.batch_size} and {accumulation}: the same steps in smaller pieces)"
        )
    if not training.gradient_checkpointing:
        options.append("training.gradient_checkpointing=true (now false)")
    if training.dense_base:
        options.append("training.dense_base=false (now true)")
    if training.dtype == "float32":
        options.append("training.dtype=bfloat16 (now float32)")
    options.append(f"data.max_length (now {config.data.max_length}; the longest example has {longest} tokens)")
    return f"out of memory {used}: lower what a step needs, one or more of: {'; '.join(options)}"


def _is_out_of_memory(error: Exception) -> bool:
    # torch's allocator for the CPU raises a plain RuntimeError.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in _ALLOCATOR)


def _used(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError) and torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        peak = torch.cuda.max_memory_allocated()
        return f"on the GPU (peak {_gib(peak)} of {_gib(total)}, {_gib(free)} free now)"
    # Linux reports the peak in KiB.
    return f"on this machine (peak {_gib(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)})"


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 30):.1f} GiB"
