"""vLLM's own settings: from `--vllm KEY=VALUE`, and what Weft sets where nothing is given.

Every field of vLLM's `AsyncEngineArgs` can be given, but for those that Weft's engine depends on. Values are read by
vLLM's own parser of the field, so that they mean what they mean to `vllm serve`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError
from weft_registry.names import nearest
from weft_server.vllm_engine.options import DEFAULT_MAX_LORA_RANK, VllmEngineOptions
from weft_server.vllm_engine.slots import Slots

OURS: Mapping[str, str] = {
    "model": "give --base",
    "tokenizer": "the base brings its own",
    "skip_tokenizer_init": "vLLM sees token ids only",
    "logprobs_mode": "log-probabilities are those before temperature, on every engine",
    "worker_extension_cls": "merging needs Weft's own",
    "disable_log_stats": "`weft stats` reads them",
    "enable_logging_iteration_details": "`weft stats` reads them",
    "enable_lora": "adapters are what Weft is for",
    "enable_prompt_embeds": "soft prompts need it",
    "kv_transfer_config": "prefix adapters need Weft's own connector",
}
"""Fields that the engine sets itself, and why."""
WORKER = "weft_server.vllm_engine.worker.WeftWorker"


def parse(pairs: Sequence[str]) -> dict[str, Any]:
    """The values of `KEY=VALUE` pairs, by field of `AsyncEngineArgs`. Imports vLLM if there are any.

    Raises `InvalidInputError` for a key that vLLM does not have (with the nearest it has), one that is Weft's own, one
    given twice, and a value that is not of the field's type.
    """
    if not pairs:
        return {}
    fields, actions = _fields(), _actions()
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not equals:
            raise InvalidInputError(f"--vllm {pair}: expected KEY=VALUE, such as max_lora_rank=64")
        if key not in fields:
            near = nearest(key, fields)
            raise InvalidInputError(
                f"--vllm {key}: this vLLM has no such setting"
                + (f"; nearest: {', '.join(near)}" if near else "; see `vllm serve --help=all`"),
                reason="UNKNOWN_SETTING",
            )
        if key in OURS:
            raise InvalidInputError(f"--vllm {key}: Weft sets it itself: {OURS[key]}", reason="OWN_SETTING")
        if key in values:
            raise InvalidInputError(f"--vllm {key}: given twice")
        values[key] = _value(key, text, actions.get(key))
    return values


def _fields() -> dict[str, Any]:
    from vllm.engine.arg_utils import AsyncEngineArgs

    return {f.name: f for f in dataclasses.fields(AsyncEngineArgs) if not f.name.startswith("_")}


def _actions() -> dict[str, argparse.Action]:
    """vLLM's command line, by field."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    return {action.dest: action for action in parser._actions}


def _value(key: str, text: str, action: argparse.Action | None) -> Any:
    try:
        if text.strip().lower() in ("none", "null"):
            return None
        if isinstance(action, argparse.BooleanOptionalAction | argparse._StoreTrueAction):
            return _boolean(text)
        if action is None or action.nargs in ("+", "*"):
            # A list, or a field that has no flag.
            return _json_or_text(text)
        if text[:1] in "{[":
            return json.loads(text)
        value = action.type(text) if callable(action.type) else text
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices if choice is not None]
            raise ValueError(f"expected one of {', '.join(choices)}")
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        raise InvalidInputError(f"--vllm {key}={text}: {error}", reason="BAD_SETTING") from error
    return value


def _boolean(text: str) -> bool:
    if text.strip().lower() not in ("true", "false"):
        raise ValueError("expected true or false")
    return text.strip().lower() == "true"


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def lora_rank(arguments: Mapping[str, Any]) -> int:
    """The largest rank that the engine will serve."""
    return int(arguments.get("max_lora_rank") or DEFAULT_MAX_LORA_RANK)


def defaults(options: VllmEngineOptions, spec: BaseSpec, slots: Slots, *, on_cpu: bool) -> dict[str, Any]:
    """What Weft sets where `--vllm` says nothing, the model's directory left out."""
    values: dict[str, Any] = {
        "dtype": options.dtype,
        "max_model_len": spec.context_length,
        "max_num_seqs": options.max_batch_size,
        "enable_prefix_caching": True,
        "enable_chunked_prefill": True,
        # None of the sampling defaults that some models bring: a request says everything.
        "generation_config": "vllm",
        "seed": 0,
        "use_tqdm_on_load": False,
        "max_loras": slots.max_loras,
        "max_cpu_loras": slots.max_cpu_loras,
        "max_lora_rank": slots.max_rank,
        "lora_target_modules": _lora_targets(options.arguments, spec),
    }
    if options.kv_bytes is not None:
        values["kv_cache_memory_bytes"] = options.kv_bytes
        block_tokens = int(options.arguments.get("block_size") or (CPU_BLOCK_TOKENS if on_cpu else _GPU_BLOCK_TOKENS))
        # vLLM keeps one block for itself, and refuses to start where one request of full length would not fit.
        blocks = options.kv_bytes // (token_bytes(spec, options.dtype) * block_tokens) - 1
        if blocks < 1:
            raise InvalidInputError(
                f"--kv-memory {options.kv_bytes}: vLLM needs two blocks of {block_tokens} tokens at least: "
                f"{2 * block_tokens * token_bytes(spec, options.dtype)} bytes",
                reason="KV_MEMORY",
            )
        values["max_model_len"] = min(spec.context_length, blocks * block_tokens)
    prefill_tokens = options.max_prefill_tokens or (_CPU_PREFILL_TOKENS if on_cpu else None)
    if prefill_tokens is not None:
        values["max_num_batched_tokens"] = prefill_tokens + options.max_batch_size
    if on_cpu:
        values |= {
            "block_size": CPU_BLOCK_TOKENS,
            # With LoRA vLLM compiles nothing on a CPU.
            "enforce_eager": True,
        }
        if int(options.arguments.get("tensor_parallel_size") or 1) == 1:
            values["distributed_executor_backend"] = "uni"
    return values


def _lora_targets(arguments: Mapping[str, Any], spec: BaseSpec) -> list[str]:
    """The linear modules, which are what adapters act on, unless a person names some of them.

    Raises `InvalidInputError` for the token embedding: with soft prompts vLLM looks up the rows that are tokens without
    the others, and its LoRA there would take them for other requests' rows.
    """
    if "lora_target_modules" not in arguments:
        return sorted({name.rpartition(".")[2] for name in spec.linears})
    given = list(arguments["lora_target_modules"] or ["embed_tokens"])
    if any(str(name).rpartition(".")[2] == "embed_tokens" for name in given):
        raise InvalidInputError(
            "--vllm lora_target_modules: name linear modules, without embed_tokens: no adapter acts on it",
            reason="BAD_SETTING",
        )
    return given


_GPU_BLOCK_TOKENS = 16
_CPU_PREFILL_TOKENS = 512
"""Of a step; vLLM's own default is eight times that, and on a CPU a second for whoever is being answered."""
CPU_BLOCK_TOKENS = 32
"""vLLM's own default on a CPU is 128, which shares no prompt that is shorter; its kernels want multiples of 32."""


def token_bytes(spec: BaseSpec, dtype: str) -> int:
    """Keys and values of one token."""
    return 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * (4 if dtype == "float32" else 2)


def own(adapters: Path, adapter_bytes: int) -> dict[str, Any]:
    """What the engine depends on: see `OURS`. `adapters` is where adapters' files are. Imports vLLM."""
    from weft_server.vllm_engine.prefix_connector import kv_transfer_config

    return {
        "kv_transfer_config": kv_transfer_config(adapters, adapter_bytes),
        "skip_tokenizer_init": True,
        "logprobs_mode": "raw_logprobs",
        "worker_extension_cls": WORKER,
        # vLLM's own logger only; the engine's (`stats.py`) gets everything.
        "disable_log_stats": True,
        "enable_logging_iteration_details": True,
        "enable_lora": True,
        "enable_prompt_embeds": True,
    }
