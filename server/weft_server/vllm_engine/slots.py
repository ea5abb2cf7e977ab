"""How many adapters vLLM is told to hold: in its batch, and in the worker's memory. Arithmetic only.

vLLM reserves `max_loras` slots, each as large as an adapter of the largest rank on every linear, whoever is in them;
and keeps up to `max_cpu_loras` adapters at their true size, from which it fills slots as requests need them.
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
    max_cpu_loras: int
    max_rank: int
    slot_bytes: int
    """Of one slot."""

    @property
    def reserved_bytes(self) -> int:
        """Of all slots."""
        return self.max_loras * self.slot_bytes


def plan_slots(
    spec: BaseSpec,
    *,
    max_rank: int,
    max_active_adapters: int,
    max_batch_size: int,
    adapter_bytes: int,
    item_bytes: int,
    max_loras: int | None = None,
) -> Slots:
    """As many slots as a batch can have different adapters, within half of what adapters may take (or `max_loras`, if a
    person wants so many); and room beside them for as many as residency may hold.

    Raises `InvalidInputError` for a rank that vLLM does not know, and when not even one slot fits, or those wanted take
    all that adapters may.
    """
    if max_rank not in RANKS:
        raise InvalidInputError(
            f"--vllm max_lora_rank={max_rank}: vLLM knows {', '.join(map(str, RANKS))}", reason="BAD_SETTING"
        )
    slot_bytes = item_bytes * max_rank * sum(n_out + n_in for n_out, n_in in spec.linears.values())
    fitting = adapter_bytes // 2 // slot_bytes
    if fitting < 1:
        raise InvalidInputError(
            f"--adapter-memory {adapter_bytes}: one slot for an adapter of rank {max_rank} takes {slot_bytes} bytes, "
            f"and slots get half: give at least {2 * slot_bytes} bytes, or a smaller --vllm max_lora_rank",
            reason="ADAPTER_MEMORY",
        )
    if max_loras is None:
        max_loras = max(1, min(max_active_adapters, max_batch_size, fitting))
    elif max_loras * slot_bytes >= adapter_bytes:
        raise InvalidInputError(
            f"--vllm max_loras={max_loras}: so many slots take {max_loras * slot_bytes} bytes, and --adapter-memory is "
            f"{adapter_bytes} for them and the adapters: give more, or want fewer",
            reason="ADAPTER_MEMORY",
        )
    # The smallest adapter that is worth the name has rank 1: residency's byte limit, not this count, is what holds.
    most = max(max_loras, (adapter_bytes - max_loras * slot_bytes) * max_rank // slot_bytes)
    return Slots(max_loras, min(most, 4096), max_rank, slot_bytes)
