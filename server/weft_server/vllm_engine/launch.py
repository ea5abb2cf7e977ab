"""Starts vLLM for a base, checks what started, and takes its measures."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft_adapters.base.load import StoredBase
from weft_registry.errors import InvalidInputError, UnavailableError, UnsupportedError
from weft_server.vllm_engine import arguments
from weft_server.vllm_engine.environment import KV_SPACE, without
from weft_server.vllm_engine.loop import LoopThread
from weft_server.vllm_engine.options import VllmEngineOptions
from weft_server.vllm_engine.pooled.path import lora_slots, why_expanded, with_lora_slots
from weft_server.vllm_engine.slots import Slots, plan_slots
from weft_server.vllm_engine.stats import EngineCounts, stat_logger


@dataclass(frozen=True)
class Launched:
    """A vLLM that computes."""

    llm: Any
    """The `AsyncLLM`. Only the loop it was made in touches it, but for its flags."""
    device: str
    context_length: int
    """Tokens that a request may have, prompt and completion together."""
    block_tokens: int
    num_blocks: int
    """Those of the key-value cache that requests may hold."""
    max_batch_size: int
    max_logprobs: int
    modules: frozenset[str]
    """The linear modules that adapters can be on, by the names that checkpoints give them."""
    base_bytes: int
    slot_bytes: int
    """Of all slots for adapters, as they were allocated."""
    slots: Slots
    why_expanded: str
    """Why QA-LoRA adapters are expanded to LoRA; "" where they are computed on pooled inputs."""
    arguments: Mapping[str, Any]
    """What vLLM was told."""

    @property
    def process_ids(self) -> list[int]:
        """The processes in which it schedules, and where there are no others computes."""
        manager = self.llm.engine_core.resources.engine_manager
        return [process.pid for process in manager.processes]


def launch(
    loop: LoopThread, base: StoredBase, options: VllmEngineOptions, adapters: Path, counts: EngineCounts
) -> Launched:
    """Starts vLLM on `loop`, and waits for it. `adapters` is where its workers find adapters' files.

    Raises `InvalidInputError` for settings that vLLM refuses, `UnavailableError` when it does not start for another
    reason, and `UnsupportedError` when its kernels mix up rows.
    """
    from vllm.platforms import current_platform

    from weft_server.vllm_engine.base.directory import vllm_directory

    expanded = why_expanded(options.arguments, on_cpu=current_platform.is_cpu())
    slots = plan_slots(
        base.spec,
        max_rank=arguments.lora_rank(options.arguments),
        pooled=not expanded,
        max_loras=options.arguments.get("max_loras"),
        lora_slots=lora_slots(options.arguments, expanded),
        max_active_adapters=options.max_active_adapters,
        max_batch_size=options.max_batch_size,
        adapter_bytes=options.adapter_bytes,
        item_bytes=options.item_bytes,
    )
    told = {
        **arguments.defaults(options, base.spec, slots, on_cpu=current_platform.is_cpu()),
        **options.arguments,
        **arguments.own(adapters, options.adapter_bytes),
        "additional_config": with_lora_slots(options.arguments, None if expanded else slots.lora_slots),
        "model": str(vllm_directory(base, options.cache)),
    }
    llm = loop.run(_start(told, counts))
    try:
        found = loop.run(llm.collective_rpc("weft_inspect"))
        _check(found, pooled=not expanded)
    except BaseException:
        loop.call(llm.shutdown)
        raise
    return Launched(
        llm=llm,
        device=str(current_platform.device_type),
        context_length=int(llm.model_config.max_model_len),
        block_tokens=int(llm.vllm_config.cache_config.block_size),
        # vLLM keeps one for itself, which stands for no block.
        num_blocks=int(llm.vllm_config.cache_config.num_gpu_blocks) - 1,
        max_batch_size=int(llm.vllm_config.scheduler_config.max_num_seqs),
        max_logprobs=int(llm.model_config.max_logprobs),
        modules=frozenset(found[0]["modules"]),
        base_bytes=sum(worker["weight_bytes"] for worker in found),
        slot_bytes=sum(worker["slot_bytes"] for worker in found),
        slots=slots,
        why_expanded=expanded,
        arguments=told,
    )


async def _start(told: Mapping[str, Any], counts: EngineCounts) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    # What was asked for stands: the variable would silently go before it.
    kept = without(KV_SPACE) if told.get("kv_cache_memory_bytes") is not None else nullcontext()
    try:
        with kept:
            return AsyncLLM.from_engine_args(AsyncEngineArgs(**told), stat_loggers=[stat_logger(counts)])
    except (ValueError, TypeError, NotImplementedError) as error:
        # What checks vLLM's settings writes a report of several lines.
        words = " ".join(str(error).split())
        raise InvalidInputError(f"vLLM refuses its settings: {words}", reason="VLLM_SETTINGS") from error
    except (RuntimeError, OSError) as error:
        raise UnavailableError(
            f"vLLM did not start: {error}; what its own process said before this says why",
            reason="ENGINE_DID_NOT_START",
        ) from error


def _check(workers: list[dict[str, Any]], *, pooled: bool) -> None:
    if pooled and not all(worker["pooled"] for worker in workers):
        raise UnsupportedError(
            "this vLLM wraps layers of this model that Weft has no pooled slots for: start with --vllm "
            '\'additional_config={"weft_qalora": "expanded"}\', and QA-LoRA is served as LoRA',
            reason="POOLED_SLOTS",
        )
    if not all(worker["base_rows_untouched"] for worker in workers):
        raise UnsupportedError(
            "this vLLM's LoRA kernels give requests for the base model another request's adapter, and Weft's plugin "
            "did not mend them: is `weft` installed where vLLM's processes look for plugins (VLLM_PLUGINS)?",
            reason="BASE_ROWS",
        )
