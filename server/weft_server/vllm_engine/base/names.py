"""The names that a model directory, the method that reads it and the merge share. Imports nothing."""

METHOD = "weft_int4"
"""config.json's `quant_method`."""
GROUP_SIZES = (32, 64, 128)
"""Inputs a group that vLLM's symmetric int4 kernels take."""
PACKED, SCALE, MINIMUM = "weight_packed", "weight_scale", "weight_min"
"""A linear layer's tensors: int32 (N, K / 8), the lowest four bits first; float16 (N, G); float16 (N, G)."""
ZERO, DENSE = ".zero", ".dense"
"""Suffixes of a merged module's tensor in a merge file: float32 (N, G), or (N, K) in the engine's dtype."""
KERNEL_SETTING = "weft_int4_kernel"
"""The key of vLLM's `additional_config` that names a kernel: auto, pooled or float-zero."""
LORA_SLOTS_SETTING = "weft_lora_slots"
"""The key that says how many of vLLM's `max_loras` slots hold a LoRA. With it QA-LoRA is computed on pooled inputs, in
any slot; without it the slots are vLLM's own."""
QALORA_SETTING = "weft_qalora"
"""The key by which a person asks for QA-LoRA "expanded" to LoRA."""
WORKER_EXTENSION = "weft_server.vllm_engine.base.worker.WeftMerging"
"""vLLM's `worker_extension_cls`."""
