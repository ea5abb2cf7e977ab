"""How many adapters vLLM is told to hold: in its batch, and in the worker's memory. Arithmetic only.

vLLM reserves `max_loras` slots, each as large as an adapter of the largest rank on every linear, whoever is in them;
and keeps up to `max_cpu_loras` adapters at their true size, from which it fills slots as requests need them.

A slot has a B, and an A for pooled inputs. The first `lora_slots` have an A for whole inputs beside it, a group's size
as wide, and hold adapters of any kind; the others hold QA-LoRA only.
"""

from __future__ import annotations

from dataclasses import dataclass

from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM's `max_lora_rank` can be."""


@dataclass(frozen=True)
class Slots:
    """What vLLM reserves for adapters."""

    max_loras: int
    lora_slots: int
    """Those of them that an adapter over whole inputs, a LoRA, fits in."""
    max_cpu_loras: int
    max_rank: int
    slot_bytes: int
    """Of a slot that holds any kind."""
    pooled_slot_bytes: int
    """Of one that holds QA-LoRA only."""

    @property
    def reserved_bytes(self) -> int:
        """Of all slots."""
        return self.lora_slots * self.slot_bytes + (self.max_loras - self.lora_slots) * self.pooled_slot_bytes


def plan_slots(
    spec: BaseSpec,
    *,
    max_rank: int,
    max_active_adapters: int,
    max_batch_size: int,
    adapter_bytes: int,
    item_bytes: int,
    pooled: bool = False,
    max_loras: int | None = None,
    lora_slots: int | None = None,
) -> Slots:
    """As many slots as a batch can have different adapters, within half of what adapters may take (or `max_loras`, if a
    person wants so many); and room beside them for as many as residency may hold.

    `pooled` says that QA-LoRA is computed on pooled inputs. Then at least half of the slots hold any kind, and all of
    them where memory allows, or `lora_slots` of them, if a person wants so many.

    Raises `InvalidInputError` for a rank that vLLM does not know, and when not even one slot fits, or those wanted take
    all that adapters may.
    """
    if max_rank not in RANKS:
        raise InvalidInputError(
            f"--vllm max_lora_rank={max_rank}: vLLM knows {', '.join(map(str, RANKS))}", reason="BAD_SETTING"
        )
    group_size = spec.fingerprint.quant.group_size
    outputs, inputs = (sum(sizes) for sizes in zip(*spec.linears.values(), strict=True))
    number_bytes = item_bytes * max_rank
    pooled_bytes = number_bytes * (outputs + inputs // group_size)
    slot_bytes = pooled_bytes + number_bytes * inputs if pooled else number_bytes * (outputs + inputs)
    if not pooled:
        pooled_bytes = slot_bytes
    budget = adapter_bytes // 2
    if budget < slot_bytes:
        raise InvalidInputError(
            f"--adapter-memory {adapter_bytes}: one slot for an adapter of rank {max_rank} takes {slot_bytes} bytes, "
            f"and slots get half: give at least {2 * slot_bytes} bytes, or a smaller --vllm max_lora_rank",
            reason="ADAPTER_MEMORY",
        )
    wide_bytes = slot_bytes - pooled_bytes
    if max_loras is None:
        most = max(1, min(max_active_adapters, max_batch_size))
        fitting = [
            count
            for count in range(1, most + 1)
            if count * pooled_bytes + min(lora_slots or (count + 1) // 2, count) * wide_bytes <= budget
        ]
        max_loras = max(fitting, default=lora_slots or 1)
        if lora_slots is None:
            left = budget - max_loras * pooled_bytes
            lora_slots = min(max_loras, left // wide_bytes) if wide_bytes else max_loras
    if lora_slots is None:
        lora_slots = max_loras
    if not 1 <= lora_slots <= max_loras:
        raise InvalidInputError(
            f"additional_config: {lora_slots} slots for LoRA, and there are {max_loras} in all: want fewer, or give "
            "more --adapter-memory or --max-active-adapters",
            reason="BAD_SETTING",
        )
    slots = Slots(max_loras, lora_slots, max_loras, max_rank, slot_bytes, pooled_bytes)
    if slots.reserved_bytes >= adapter_bytes:
        raise InvalidInputError(
            f"--vllm max_loras={max_loras}: so many slots take {slots.reserved_bytes} bytes, and --adapter-memory is "
            f"{adapter_bytes} for them and the adapters: give more, or want fewer",
            reason="ADAPTER_MEMORY",
        )
    # The smallest adapter that is worth the name has rank 1: residency's byte limit, not this count, is what holds.
    most_kept = max(max_loras, (adapter_bytes - slots.reserved_bytes) * max_rank // pooled_bytes)
    return Slots(max_loras, lora_slots, min(most_kept, 4096), max_rank, slot_bytes, pooled_bytes)
