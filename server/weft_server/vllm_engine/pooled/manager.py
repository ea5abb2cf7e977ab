"""vLLM's manager of adapters, with slots of two widths: who goes into which, and who makes room.

A LoRA needs one of the first `lora_slots` slots, a QA-LoRA takes any and prefers the others. vLLM's scheduler sees to
it that a step has no more different adapters than there are slots; that no more of them are LoRA than fit is seen to by
the engine (`lora_gate`).
"""

from __future__ import annotations

from typing import Any

from vllm.lora.model_manager import LRUCacheLoRAModelManager

from weft_server.vllm_engine.pooled.layers import PooledLayer
from weft_server.vllm_engine.pooled.rows import WornRows


class PooledLoRAManager(LRUCacheLoRAModelManager):  # type: ignore[misc]
    """One a worker. Owns who is in which slot; over a model without pooled layers it is vLLM's own."""

    def __init__(self, **settings: Any) -> None:
        self.whole_slots: int | None = None
        """Those that a LoRA fits in; None where the layers are vLLM's own."""
        super().__init__(**settings)
        layers = [layer for layer in self.modules.values() if isinstance(layer, PooledLayer)]
        if not layers:
            return
        self.whole_slots = layers[0].lora_slots
        self._rows = WornRows(
            self.whole_slots, self.max_num_batched_tokens, self.max_num_seqs, self.device, self.lora_config
        )
        for layer in layers:
            layer.rows = self._rows

    def activate_adapter(self, lora_id: int) -> bool:
        """See vLLM."""
        if self.whole_slots is None:
            return bool(super().activate_adapter(lora_id))
        new = lora_id not in self._active_adapters
        if new:
            slot = self._room(self.reads_whole(lora_id), self.whole_slots)
            self._active_adapters[lora_id] = None
            self._write(lora_id, slot)
        self._active_adapters.touch(lora_id)
        return new

    def reads_whole(self, lora_id: int) -> bool:
        """Whether a registered adapter's A reads whole inputs."""
        return bool(self._registered_adapters.cache[lora_id].weft_reads_whole)

    def _room(self, whole: bool, count: int) -> int:
        """A free slot that fits; whoever has not been used for longest gives way. `count`: those that fit a LoRA."""
        held = self.lora_index_to_id
        free = [slot for slot, lora_id in enumerate(held) if lora_id is None]
        fitting = [slot for slot in free if slot < count or not whole]
        if fitting:
            return max(fitting) if not whole else fitting[0]
        if not whole:
            return self._evict(held)
        movable = [slot for slot in range(count) if not self.reads_whole(held[slot])]
        if not movable:
            return self._evict(held[:count])
        # A QA-LoRA moves out, to a slot that is free or becomes so: it may be needed in this very step.
        place = free[0] if free else self._evict(held)
        if place < count:
            return place
        moving = held[movable[0]]
        held[movable[0]] = None
        self._write(moving, place)
        return movable[0]

    def _evict(self, among: list[int]) -> int:
        """Empties the slot of the one that was not used for longest."""
        lora_id = next(i for i in self._active_adapters.order if i in among)
        slot: int = self.lora_index_to_id.index(lora_id)
        self._active_adapters.pop(lora_id)
        return slot

    def _write(self, lora_id: int, slot: int) -> None:
        self.lora_index_to_id[slot] = lora_id
        adapter = self._registered_adapters.cache[lora_id]
        for name, module in self.modules.items():
            weights = self._get_lora_layer_weights(adapter, name)
            if weights is None:
                module.reset_lora(slot)
            else:
                module.set_lora(slot, weights.lora_a, weights.lora_b)

    def _create_merged_loras_inplace(self, lora_model: Any) -> None:
        super()._create_merged_loras_inplace(lora_model)
        if self.whole_slots is None:
            return
        found = set()
        for name, module in self.modules.items():
            weights = self._get_lora_layer_weights(lora_model, name)
            if weights is not None and isinstance(module, PooledLayer):
                found.add(module.reads_whole(weights.lora_a))
        if len(found) > 1:
            raise ValueError("an adapter reads pooled inputs at some modules and whole ones at others")
        lora_model.weft_reads_whole = True in found

    def _set_adapter_mapping(self, mapping: Any) -> None:
        super()._set_adapter_mapping(mapping)
        if self.whole_slots is not None:
            self._rows.update(mapping, self.lora_index_to_id, self.reads_whole, self.vocab_size)
