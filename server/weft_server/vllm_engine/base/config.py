"""`weft_int4` as vLLM's configuration of a quantization method: what config.json says about a base's linear layers."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

from weft_registry.errors import InvalidInputError, UnsupportedError
from weft_server.vllm_engine import versions
from weft_server.vllm_engine.base.kernels import KERNELS
from weft_server.vllm_engine.base.linear import WeftInt4LinearMethod
from weft_server.vllm_engine.base.names import GROUP_SIZES, KERNEL_SETTING, LORA_SLOTS_SETTING, METHOD


@register_quantization_config(METHOD)
class WeftInt4Config(QuantizationConfig):  # type: ignore[misc]
    """int4 codes with a float16 scale and a float16 minimum a group: `w = scale * code + minimum`.

    Embedding and head are dense, as in the stored base.
    """

    def __init__(self, group_size: int, fingerprint: str) -> None:
        super().__init__()
        if group_size not in GROUP_SIZES:
            raise UnsupportedError(
                f"{METHOD}: groups of {group_size} inputs; vLLM's int4 kernels take "
                f"{', '.join(map(str, GROUP_SIZES))}. Add the base again with such a --group-size, or serve it with "
                "the torch engine"
            )
        self.group_size = group_size
        self.fingerprint = fingerprint
        # On processors with AMX vLLM's int4 kernel rounds activations to 8 bits unless told not to. Set here, so that
        # only processes that load such a base are told; one where it is on all the same is refused at loading.
        os.environ.setdefault("VLLM_CPU_INT4_W4A8", "0")
        # A filter that is there already is not added again.
        logging.getLogger("vllm.model_executor.models.utils").addFilter(_rounding_is_meant)

    def get_name(self) -> str:
        """See vLLM."""
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """See vLLM. float32 is the parity mode."""
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        """See vLLM: the least that any of its symmetric int4 kernels takes; its chooser looks at the rest."""
        return 60

    @staticmethod
    def get_config_filenames() -> list[str]:
        """See vLLM: everything is in config.json."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WeftInt4Config:
        """Reads `quantization_config`. Raises `InvalidInputError` for a missing or unknown key."""
        wanted = {"quant_method", "group_size", "fingerprint"}
        if config.keys() != wanted:
            odd = ", ".join(sorted(config.keys() ^ wanted))
            raise InvalidInputError(f"quantization_config of {METHOD}: missing or unknown: {odd}")
        return cls(config["group_size"], config["fingerprint"])

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> WeftInt4LinearMethod | None:
        """See vLLM: one method object a layer, for a layer's merge is its own state."""
        if not isinstance(layer, LinearBase):
            return None
        lora_slots = _settings().get(LORA_SLOTS_SETTING)
        if lora_slots is not None:
            # Here, so that only processes that load such a base have them.
            versions.add_lora_layers()
        return WeftInt4LinearMethod(self, prefix, _kernel_setting(), lora_slots)


def _rounding_is_meant(record: logging.LogRecord) -> bool:
    """Drops a line for every norm: a base keeps its dense tensors as they came, and an engine rounds them once."""
    return not str(record.msg).startswith("Attempted to load weight %s with dtype")


def _settings() -> dict[str, Any]:
    settings = get_current_vllm_config().additional_config
    return settings if isinstance(settings, dict) else {}


def _kernel_setting() -> str:
    """What `additional_config` asks for: a kernel by name, or "auto"."""
    asked = _settings().get(KERNEL_SETTING, "auto")
    if asked != "auto" and asked not in KERNELS:
        raise InvalidInputError(
            f"additional_config: {KERNEL_SETTING} is {asked!r}; it can be auto, {', '.join(KERNELS)}"
        )
    return str(asked)
