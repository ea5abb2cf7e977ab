"""Base models: imported once from GGUF or safetensors, stored group-wise int4, opened by trainer and server alike."""

from weft_adapters.base.config import ModelConfig
from weft_adapters.base.dense import dequantized_state_dict
from weft_adapters.base.importing import add_base
from weft_adapters.base.load import StoredBase

__all__ = ["ModelConfig", "StoredBase", "add_base", "dequantized_state_dict"]
