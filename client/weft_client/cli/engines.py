"""What each engine would run a base with on this machine, in a line. Starts none, loads no weights and no torch."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weft_registry.base import BaseSpec


def engine_kernels(spec: BaseSpec) -> dict[str, str]:
    """By engine: its kernels for a base, or why it cannot run it here."""
    return {"torch": _torch(spec), "vllm": _vllm(spec)}


def _torch(spec: BaseSpec) -> str:
    from weft_server.torch_engine.native.choose import why_not_native
    from weft_server.torch_engine.native.library import find_compiler

    reason = why_not_native(spec) or (None if find_compiler() else "there is no C compiler")
    return "native int4" if reason is None else f"torch kernels: {reason}"


def _vllm(spec: BaseSpec) -> str:
    from weft_server.vllm_engine.base.names import GROUP_SIZES, METHOD

    group_size = spec.fingerprint.quant.group_size
    if group_size not in GROUP_SIZES:
        return f"none: groups of {group_size} inputs, and its int4 kernels take {', '.join(map(str, GROUP_SIZES))}"
    text = f"{METHOD} g{group_size}: float-zero on a CPU in bfloat16, else pooled over vLLM's symmetric int4 kernel"
    # The CPU build is another package with the same module.
    return text if importlib.util.find_spec("vllm") else f"{text} (vLLM is not installed here)"
