"""Who goes into which slot where only some of them hold a LoRA: the manager, over layers that note what they hold."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest


class Layer:
    """Notes who is in its slots."""

    def __init__(self, count: int) -> None:
        self.held: list[Any] = [None] * count

    def set_lora(self, slot: int, lora_a: Any, lora_b: Any) -> None:
        self.held[slot] = lora_a

    def reset_lora(self, slot: int) -> None:
        self.held[slot] = None


def manager(count: int, whole: int) -> Any:
    """A manager with `count` slots, `whole` of them for LoRA, without a model."""
    from vllm.lora.model_manager import AdapterLRUCache

    from weft_server.vllm_engine.pooled.manager import PooledLoRAManager

    made: Any = PooledLoRAManager.__new__(PooledLoRAManager)
    made.whole_slots = whole
    made.lora_config = SimpleNamespace(max_loras=count, max_cpu_loras=100)
    made.lora_index_to_id = [None] * count
    made._registered_adapters = AdapterLRUCache(100, made.deactivate_adapter)
    made._active_adapters = AdapterLRUCache(count, made._deactivate_adapter)
    made.modules = {"layer": Layer(count)}
    made.is_pooling_model = False
    return made


def register(made: Any, lora_id: int, *, reads_whole: bool) -> None:
    weights = SimpleNamespace(lora_a=lora_id, lora_b=None)
    made._registered_adapters[lora_id] = SimpleNamespace(
        id=lora_id, weft_reads_whole=reads_whole, get_lora=lambda name: weights
    )


def slots(made: Any) -> list[int | None]:
    """Who is where: as the manager believes, and as the layers know."""
    for slot, lora_id in enumerate(made.lora_index_to_id):
        assert lora_id is None or made.modules["layer"].held[slot] == lora_id
    assert set(made.lora_index_to_id) - {None} == set(made._active_adapters.order)
    found: list[int | None] = list(made.lora_index_to_id)
    return found


def test_a_qalora_leaves_the_slots_for_lora_free_while_there_are_others() -> None:
    made = manager(4, 2)
    for lora_id in (1, 2, 3, 4):
        register(made, lora_id, reads_whole=lora_id == 4)
        made.activate_adapter(lora_id)
    assert slots(made) == [4, 3, 2, 1]


def test_a_qalora_in_a_slot_for_lora_moves_out_and_stays() -> None:
    made = manager(3, 1)
    for lora_id in (1, 2, 3, 4):
        register(made, lora_id, reads_whole=lora_id == 4)
    for lora_id in (2, 3, 1):
        made.activate_adapter(lora_id)
    assert slots(made)[0] == 1
    made.activate_adapter(4)
    # 2 was not used for longest, and it is 1 that was in the way.
    assert slots(made) == [4, 3, 1]


def test_a_lora_gives_way_to_a_lora_where_no_other_slot_holds_one() -> None:
    made = manager(3, 1)
    for lora_id in (1, 2, 3):
        register(made, lora_id, reads_whole=lora_id != 2)
    made.activate_adapter(2)
    for lora_id in (1, 3):
        made.activate_adapter(lora_id)
    assert slots(made) == [3, None, 2]


@pytest.mark.parametrize(("count", "whole"), [(2, 1), (5, 2), (6, 6), (8, 3)])
def test_whatever_a_step_needs_is_in_slots_that_fit(count: int, whole: int) -> None:
    chance = random.Random(count)
    made = manager(count, whole)
    loras, pooled = list(range(1, 10)), list(range(10, 25))
    for lora_id in (*loras, *pooled):
        register(made, lora_id, reads_whole=lora_id in loras)
    for _ in range(400):
        some = chance.sample(loras, chance.randint(0, whole))
        some += chance.sample(pooled, chance.randint(0, count - len(some)))
        chance.shuffle(some)
        for lora_id in some:
            made.activate_adapter(lora_id)
        held = slots(made)
        assert set(some) <= set(held)
        assert not any(lora_id in loras for lora_id in held[whole:])
        if chance.random() < 0.2 and some:
            made.deactivate_adapter(some[0])
            slots(made)
