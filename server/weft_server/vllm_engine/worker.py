"""What vLLM's workers can do for Weft beyond their own methods: merging, and telling what they are made of.

vLLM mixes the class into its worker (`worker_extension_cls`) and calls it through `collective_rpc`.
"""

from __future__ import annotations

from typing import Any

from weft_server.vllm_engine.base.linear import WeftInt4LinearMethod
from weft_server.vllm_engine.base.worker import WeftMerging
from weft_server.vllm_engine.base_rows import base_rows_untouched
from weft_server.vllm_engine.prefix_worker import PrefixWorker


class WeftWorker(WeftMerging, PrefixWorker):
    """Has no state of its own."""

    def weft_inspect(self) -> dict[str, Any]:
        """What the engine checks before its first request: the linear modules that adapters can be on, by the names
        that checkpoints give them; whether all of them have pooled slots; whether rows of the base model stay as they
        are in a batch with adapters; and the bytes of the model's own weights here, and of the slots."""
        worker: Any = self
        runner = worker.model_runner
        manager = runner.lora_manager._adapter_manager
        packed = manager.packed_modules_mapping
        wrapped = []
        for name in manager.modules:
            parent, _, leaf = name.rpartition(".")
            wrapped += [f"{parent}.{part}" for part in packed.get(leaf, (leaf,))]
        # A layer that LoRA wraps holds the same tensors as its inner layer does: each is counted once.
        tensors = {t.data_ptr(): t.nbytes for t in (*runner.model.parameters(), *runner.model.buffers())}
        stacks = {
            t.data_ptr(): t.nbytes
            for module in manager.modules.values()
            for name in ("lora_a_stacked", "lora_b_stacked", "whole_a_stacked")
            for t in getattr(module, name, ())
        }
        return {
            "modules": wrapped,
            "pooled": all(
                hasattr(module, "whole_a_stacked")
                for module in manager.modules.values()
                if isinstance(getattr(module.base_layer, "quant_method", None), WeftInt4LinearMethod)
            ),
            "base_rows_untouched": base_rows_untouched(manager.lora_config, runner.device),
            "weight_bytes": sum(size for pointer, size in tensors.items() if pointer not in stacks),
            "slot_bytes": sum(stacks.values()),
        }
