"""Builds the vLLM engine as a server's options ask for it."""

from __future__ import annotations

import os

from weft_adapters.base.load import StoredBase
from weft_registry.errors import InvalidInputError
from weft_server.engines import BuiltEngine
from weft_server.memory_plan import BASE, MemoryPlan, Part
from weft_server.options import (
    DEFAULT_ADAPTER_BYTES,
    DEFAULT_KV_BYTES,
    DEFAULT_OVERLAY_BYTES,
    ServeOptions,
)
from weft_server.vllm_engine import arguments
from weft_server.vllm_engine.engine import VllmEngine
from weft_server.vllm_engine.environment import KV_SPACE, on_cpu, prepare
from weft_server.vllm_engine.kinds import SERVED
from weft_server.vllm_engine.options import VllmEngineOptions
from weft_server.vllm_engine.slots import Slots
from weft_server.vllm_engine.versions import vllm_version_text

_OTHERS = {
    "memory_bytes": ("--memory", "give --kv-memory, --adapter-memory and --overlay-memory: vLLM has its own processes"),
    "device": ("--device", "vLLM computes on what it was built for"),
    "kernels": ("--kernels", "it chooses the embedded engine's kernels"),
    "copies": ("--copies", "it is about the embedded engine's weights"),
}
"""Options that this engine would not heed, and why."""


def build(options: ServeOptions, base: StoredBase) -> BuiltEngine:
    """See `weft_server.engines.Build`."""
    settings = engine_options(options)
    base.verify()
    engine = VllmEngine(base, settings)
    kv_bytes = engine.stats().blocks_total * engine.stats().block_bytes
    slots, slot_bytes = engine.launched.slots, engine.launched.slot_bytes
    adapter_bytes = settings.adapter_bytes - slot_bytes
    plan = MemoryPlan(
        kv_bytes=kv_bytes,
        adapter_bytes=adapter_bytes,
        overlay_bytes=settings.overlay_bytes,
        copies=False,
        parts=(
            Part(BASE, engine.base_bytes, reserved=True),
            Part("keys and values", kv_bytes, reserved=True),
            Part(_slots_line(slots), slot_bytes, reserved=True),
            Part("adapters", adapter_bytes, reserved=False),
            Part("merged weights", settings.overlay_bytes, reserved=False),
        ),
        budget_bytes=None,
    )
    lines = [f"{options.dtype} on {engine.info.device}, vLLM {vllm_version_text()}"]
    told = {key: value for key, value in sorted(engine.launched.arguments.items()) if key not in arguments.OURS}
    lines += ["vLLM's settings: " + ", ".join(f"{key}={value}" for key, value in told.items())]
    for kind, how in SERVED.items():
        if how.expanded is not None and engine.launched.why_expanded:
            lines.append(f"{kind} adapters: {how.expanded_note} ({engine.launched.why_expanded})")
        elif how.note:
            lines.append(f"{kind} adapters: {how.note}")
    return BuiltEngine(engine, plan, "\n".join(lines))


def _slots_line(slots: Slots) -> str:
    text = f"{slots.max_loras} slots for adapters of rank {slots.max_rank}"
    return text if slots.lora_slots == slots.max_loras else f"{text}, {slots.lora_slots} of them for LoRA"


def engine_options(options: ServeOptions) -> VllmEngineOptions:
    """The engine's settings. Raises `InvalidInputError` for one that it would not heed, or that vLLM does not know."""
    for name, (flag, why) in _OTHERS.items():
        if getattr(options, name) != getattr(ServeOptions, name):
            raise InvalidInputError(f"{flag}: without effect with --engine vllm: {why}")
    threads = options.threads or os.cpu_count() or 1
    prepare(threads)
    given = arguments.parse(options.vllm)
    kv_bytes = options.kv_bytes
    said = {"kv_cache_memory_bytes", "gpu_memory_utilization"} & given.keys() or KV_SPACE in os.environ
    if kv_bytes is None and on_cpu() and not said:
        # On a GPU vLLM takes what is left of its memory; on a CPU that would be nearly all of the machine's.
        kv_bytes = DEFAULT_KV_BYTES
    changed = options.max_prefill_tokens != ServeOptions.max_prefill_tokens
    return VllmEngineOptions(
        cache=options.home.cache,
        dtype=options.dtype,
        max_batch_size=options.max_batch_size,
        max_prefill_tokens=options.max_prefill_tokens if changed else None,
        max_waiting=options.max_waiting,
        max_active_adapters=options.max_active_adapters,
        kv_bytes=kv_bytes,
        adapter_bytes=options.adapter_bytes or DEFAULT_ADAPTER_BYTES,
        overlay_bytes=options.overlay_bytes or DEFAULT_OVERLAY_BYTES,
        num_threads=threads,
        arguments=given,
    )
