"""Whether QA-LoRA can be computed on pooled inputs with these settings, and why not. Decided before vLLM starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from weft_registry.errors import InvalidInputError
from weft_server.vllm_engine import versions
from weft_server.vllm_engine.base.names import KERNEL_SETTING, LORA_SLOTS_SETTING, QALORA_SETTING

POOLED, EXPANDED = "pooled", "expanded"
_SETTINGS = (KERNEL_SETTING, LORA_SLOTS_SETTING, QALORA_SETTING)


def why_expanded(arguments: Mapping[str, Any], *, on_cpu: bool) -> str:
    """Why QA-LoRA adapters are served as LoRA, in words that begin with "for"; "" where they are not. `arguments` are
    vLLM's. Raises `InvalidInputError` for a setting that is neither way's name. Imports vLLM."""
    from vllm.platforms import current_platform

    asked = additional(arguments).get(QALORA_SETTING, POOLED)
    if asked not in (POOLED, EXPANDED):
        raise InvalidInputError(
            f"additional_config: {QALORA_SETTING} is {asked!r}; it can be {POOLED} or {EXPANDED}", reason="BAD_SETTING"
        )
    if asked == EXPANDED:
        return "for additional_config asks for it"
    if not on_cpu and not arguments.get("enforce_eager"):
        return "for layers are compiled and captured (--vllm enforce_eager=true has them run eagerly)"
    if arguments.get("fully_sharded_loras"):
        return "for fully_sharded_loras cuts slots another way"
    if os.environ.get("VLLM_LORA_ENABLE_DUAL_STREAM", "0") not in ("0", ""):
        return "for VLLM_LORA_ENABLE_DUAL_STREAM computes adapters elsewhere"
    if not current_platform.can_update_inplace() or not versions.takes_lora_layers():
        return "for this vLLM has no place for layers of ours"
    return ""


def lora_slots(arguments: Mapping[str, Any], expanded: str) -> int | None:
    """How many slots a person wants for LoRA. `expanded`: see `why_expanded`. Raises `InvalidInputError` for what is no
    number, and where every slot holds a LoRA."""
    asked = additional(arguments).get(LORA_SLOTS_SETTING)
    if asked is not None and expanded:
        raise InvalidInputError(
            f"additional_config: {LORA_SLOTS_SETTING} is without effect: QA-LoRA is served as LoRA, {expanded}",
            reason="BAD_SETTING",
        )
    if asked is not None and (not isinstance(asked, int) or isinstance(asked, bool) or asked < 1):
        raise InvalidInputError(
            f"additional_config: {LORA_SLOTS_SETTING} is {asked!r}; it is a number from 1", reason="BAD_SETTING"
        )
    return asked


def with_lora_slots(arguments: Mapping[str, Any], count: int | None) -> dict[str, Any]:
    """`additional_config` as the workers are given it: with the number of slots for LoRA, or without."""
    settings = dict(additional(arguments))
    settings.pop(LORA_SLOTS_SETTING, None)
    return settings if count is None else {**settings, LORA_SLOTS_SETTING: count}


def additional(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """vLLM's `additional_config`, of which some keys are Weft's. Raises `InvalidInputError` for one that looks like
    Weft's and is not, and for what is no object."""
    found = arguments.get("additional_config") or {}
    if not isinstance(found, dict):
        raise InvalidInputError("--vllm additional_config: expected a JSON object", reason="BAD_SETTING")
    unknown = sorted(key for key in found if str(key).startswith("weft_") and key not in _SETTINGS)
    if unknown:
        raise InvalidInputError(
            f"additional_config: {unknown[0]} is no setting of Weft's; it has {', '.join(_SETTINGS)}",
            reason="BAD_SETTING",
        )
    return found
