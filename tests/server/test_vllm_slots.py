"""How many adapters vLLM is told to hold. Needs no vLLM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.tiny_models import AddedBase
from weft_registry.errors import InvalidInputError
from weft_server.vllm_engine.slots import Slots, plan_slots


@pytest.fixture
def plan(tiny_base: Callable[..., AddedBase]) -> Callable[..., Slots]:
    spec = tiny_base().stored.spec

    def made(**changes: Any) -> Slots:
        values = {"max_rank": 8, "max_active_adapters": 64, "max_batch_size": 32, "adapter_bytes": 1 << 30}
        return plan_slots(spec, item_bytes=2, **(values | changes))

    return made


def test_a_slot_is_as_large_as_an_adapter_of_the_largest_rank(
    plan: Callable[..., Slots], tiny_base: Callable[..., AddedBase]
) -> None:
    weights = sum(8 * n_in + n_out * 8 for n_out, n_in in tiny_base().stored.spec.linears.values())
    assert plan().slot_bytes == 2 * weights
    assert plan(max_rank=64).slot_bytes == 8 * plan().slot_bytes


def test_there_are_as_many_as_a_batch_can_use_within_half_of_the_memory(plan: Callable[..., Slots]) -> None:
    assert plan().max_loras == 32
    assert plan(max_active_adapters=5).max_loras == 5
    slot_bytes = plan().slot_bytes
    assert plan(adapter_bytes=9 * slot_bytes).max_loras == 4
    assert plan(adapter_bytes=9 * slot_bytes).reserved_bytes <= 9 * slot_bytes // 2
    assert plan(adapter_bytes=9 * slot_bytes, max_loras=8).max_loras == 8


def test_the_workers_memory_has_room_for_all_that_residency_may_hold(plan: Callable[..., Slots]) -> None:
    slot_bytes = plan().slot_bytes
    slots = plan(adapter_bytes=20 * slot_bytes, max_active_adapters=4)
    # Adapters of rank 1 in what the four slots leave.
    assert slots.max_cpu_loras == 16 * 8
    assert all(
        plan(adapter_bytes=n * slot_bytes).max_cpu_loras >= plan(adapter_bytes=n * slot_bytes).max_loras
        for n in range(2, 200, 7)
    )


def test_a_slot_for_qalora_alone_has_an_a_for_pooled_inputs_only(
    plan: Callable[..., Slots], tiny_base: Callable[..., AddedBase]
) -> None:
    spec = tiny_base().stored.spec
    group = spec.fingerprint.quant.group_size
    pooled = sum(8 * n_in // group + n_out * 8 for n_out, n_in in spec.linears.values())
    slots = plan(pooled=True)
    assert slots.pooled_slot_bytes == 2 * pooled
    # One that holds any kind has both.
    assert slots.slot_bytes == plan().slot_bytes + 2 * sum(8 * n_in // group for _, n_in in spec.linears.values())
    assert plan().lora_slots == plan().max_loras


def test_memory_decides_how_many_slots_hold_a_lora_and_half_of_them_do_at_least(plan: Callable[..., Slots]) -> None:
    assert plan(pooled=True).lora_slots == plan(pooled=True).max_loras == 32
    one = plan(pooled=True).slot_bytes
    for count in (2, 3, 9, 20, 40, 63):
        slots, whole = plan(pooled=True, adapter_bytes=count * one), plan(adapter_bytes=count * one)
        assert slots.reserved_bytes <= count * one // 2
        assert (slots.max_loras + 1) // 2 <= slots.lora_slots <= slots.max_loras
        # What whole slots had room for, and more where an A is left out.
        assert slots.max_loras >= min(32, count // 2)
        assert slots.max_loras + slots.lora_slots <= 2 * whole.max_loras + 1
    assert plan(pooled=True, adapter_bytes=20 * one).max_loras > plan(adapter_bytes=20 * one).max_loras


def test_who_wants_so_many_slots_for_lora_gets_them(plan: Callable[..., Slots]) -> None:
    one = plan(pooled=True).slot_bytes
    few = plan(pooled=True, adapter_bytes=20 * one, lora_slots=1)
    assert few.lora_slots == 1
    assert few.max_loras > plan(pooled=True, adapter_bytes=20 * one).max_loras
    assert few.reserved_bytes <= 10 * one
    assert plan(pooled=True, max_loras=6, lora_slots=2).max_loras == 6
    assert plan(pooled=True, max_loras=6).lora_slots == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_rank": 24}, "max_lora_rank=24: vLLM knows 1, 8, 16"),
        ({"adapter_bytes": 100}, r"--adapter-memory 100: one slot .* give at least \d+ bytes"),
        ({"adapter_bytes": 1 << 20, "max_loras": 1000}, r"max_loras=1000: so many slots take \d+ bytes"),
        ({"pooled": True, "max_loras": 4, "lora_slots": 5}, "5 slots for LoRA, and there are 4 in all"),
        ({"pooled": True, "lora_slots": 500}, "500 slots for LoRA, and there are 32 in all"),
    ],
)
def test_what_cannot_be_is_refused_with_the_numbers(
    plan: Callable[..., Slots], changes: dict[str, int], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        plan(**changes)
