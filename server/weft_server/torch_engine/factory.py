"""Builds the embedded engine as a server's options ask for it."""

from __future__ import annotations

from weft_adapters.base.load import StoredBase
from weft_registry.errors import InvalidInputError
from weft_server.engines import BuiltEngine
from weft_server.machine import engine_options, memory_plan, native_kernels
from weft_server.options import ServeOptions
from weft_server.torch_engine.engine import TorchEngine


def build(options: ServeOptions, base: StoredBase) -> BuiltEngine:
    """See `weft_server.engines.Build`."""
    if options.vllm:
        raise InvalidInputError(f"--vllm {options.vllm[0]}: without effect unless --engine is vllm")
    native, kernels = native_kernels(options, base)
    plan = memory_plan(options, base, native=native is not None)
    settings = engine_options(options, plan, native)
    base.verify()
    engine = TorchEngine(base, settings)
    try:
        plan = plan.measured(engine.base_bytes)
    except BaseException:
        engine.close()
        raise
    about = f"{options.dtype} on {settings.device}, {settings.num_threads} threads, {kernels}"
    return BuiltEngine(engine, plan, about + (", dense copies beside int4" if settings.copies else ""))
