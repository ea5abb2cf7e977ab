"""What vLLM reads from the environment, set before it is imported. What the person who starts it has set stands."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from weft_server.vllm_engine.versions import vllm_version

KV_SPACE = "VLLM_CPU_KVCACHE_SPACE"
"""vLLM's older way to say how large the cache is on a CPU, in GiB. It goes before vLLM's own argument."""


@contextmanager
def without(name: str) -> Iterator[None]:
    """The environment without a variable, for as long as the block lasts, and for processes that are started in it."""
    value = os.environ.pop(name, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[name] = value


def on_cpu() -> bool:
    """Whether the vLLM that is here computes on a CPU. Imports it: call `prepare` first."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def prepare(num_threads: int) -> None:
    """Sets what Weft's engine relies on, for this process and those that vLLM starts.

    Raises `UnsupportedError` when there is no vLLM, or one that is too old.
    """
    vllm_version()
    wanted = {
        # gRPC has threads by now, and a fork keeps their locks without them.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        # How an adapter whose numbers are not finite is found: vLLM itself would answer token 0.
        "VLLM_COMPUTE_NANS_IN_LOGITS": "1",
        # It would quantize the activations as well.
        "VLLM_CPU_INT4_W4A8": "0",
        # vLLM keeps one core free for its own front end, which with two cores is half of the machine.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # The worker in the process of the scheduler (see `arguments.defaults`): one process less, no copies between.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "OMP_NUM_THREADS": str(num_threads),
        "VLLM_LOGGING_LEVEL": "WARNING",
        # Standard output carries the server's ready line, and nothing else.
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_NO_USAGE_STATS": "1",
    }
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
