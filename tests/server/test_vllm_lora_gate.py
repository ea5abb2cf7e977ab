"""How many different LoRA adapters vLLM is given where few of its slots hold one. Needs no vLLM."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from weft_server.engine import EngineRequest, Sampling
from weft_server.vllm_engine.lora_gate import LoraGate
from weft_server.vllm_engine.phases import Phases
from weft_server.vllm_engine.requests import Running


@dataclass
class Handle:
    digest: str
    reads_whole: bool
    size_bytes: int = 0


def request(name: str, digest: str = "") -> Running:
    """Digests that begin with "l" are LoRA."""
    handle = Handle(digest, digest.startswith("l")) if digest else None
    return Running(EngineRequest(name, (1,), handle, Sampling(), 1, 0, frozenset(), None))


def test_a_lora_that_is_one_too_many_waits_and_others_pass_it() -> None:
    gate = LoraGate(2)
    inside = [request("1", "l1"), request("2", "l2")]
    for running in inside:
        assert gate.next([running]) is running
        gate.enter(running)
    third, again, pooled, base = request("3", "l3"), request("4", "l1"), request("5", "q1"), request("6")
    assert gate.next([third]) is None
    # Its turn must come: who would keep the slots busy does not pass it, who needs none does.
    assert gate.next([third, again]) is None
    assert gate.next([third, again, pooled, base]) is pooled
    gate.leave(inside[0])
    assert gate.next([third, again]) is third


def test_an_adapter_leaves_with_its_last_request() -> None:
    gate = LoraGate(1)
    first, second, other = request("1", "l1"), request("2", "l1"), request("3", "l2")
    gate.enter(first)
    assert gate.next([second]) is second
    gate.enter(second)
    gate.leave(first)
    assert gate.next([other]) is None
    gate.leave(second)
    assert gate.next([other]) is other


def test_without_a_number_nobody_waits() -> None:
    gate = LoraGate(None)
    for number in range(20):
        running = request(str(number), f"l{number}")
        assert gate.next([running]) is running
        gate.enter(running)


@pytest.mark.parametrize("slots", [1, 3])
async def test_never_more_loras_inside_than_slots_and_everybody_gets_in(slots: int) -> None:
    chance = random.Random(slots)
    inside: list[Running] = []

    async def nothing(digest: str | None) -> None:
        raise AssertionError("nothing is merged here")

    gate = Phases(inside.append, nothing, slots)
    entered: set[str] = set()
    for number in range(300):
        gate.add(request(str(number), chance.choice(["", "q1", "q2", *(f"l{i}" for i in range(6))])))
        loras = {running.digest for running in inside if running.digest.startswith("l")}
        assert len(loras) <= slots
        entered |= {running.request.request_id for running in inside}
        if chance.random() < 0.5 and inside:
            gate.drop(inside.pop(chance.randrange(len(inside))))
    while inside:
        entered |= {running.request.request_id for running in inside}
        gate.drop(inside.pop(0))
    assert len(entered) == 300
