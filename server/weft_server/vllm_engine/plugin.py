"""What vLLM calls in each of its processes (entry point `vllm.general_plugins`): Weft's extensions, registered.

May be called any number of times. Raises nothing for a vLLM that runs another model: it only adds names.
"""

from __future__ import annotations


def register() -> None:
    """Adds the quantization method `weft_int4` and, where the environment asks for it, the adapter resolver; mends LoRA
    kernels that touch rows of the base model, and a cache that hands on what is not finite."""
    from weft_server.vllm_engine import base_rows, resolver, versions
    from weft_server.vllm_engine.base import config

    base_rows.patch()
    versions.zero_new_blocks()
    resolver.register()

    # Imported for what the import registers.
    assert config.WeftInt4Config is not None
