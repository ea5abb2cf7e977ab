"""When merged weights are in force on an engine that has one set of weights for a whole batch. Needs no vLLM."""

from __future__ import annotations

import asyncio

import pytest

from weft_registry.errors import PreconditionError
from weft_server.engine import EngineRequest, Sampling
from weft_server.vllm_engine import phases
from weft_server.vllm_engine.phases import Phases
from weft_server.vllm_engine.requests import Running


class Handle:
    def __init__(self, digest: str) -> None:
        self.digest = digest
        self.size_bytes = 0


class Lab:
    """Phases over an engine that does nothing but note what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.fails = False
        self.phases = Phases(self._hand_over, self._put_in_force)

    def _hand_over(self, running: Running) -> None:
        self.told.append(running.request.request_id)

    async def _put_in_force(self, digest: str | None) -> None:
        await asyncio.sleep(0)
        if self.fails and digest is not None:
            raise PreconditionError("it cannot be")
        self.told.append(f"weights of {digest}")

    def ask(self, request_id: str, digest: str) -> Running:
        handle = Handle(digest) if digest else None
        running = Running(EngineRequest(request_id, (1,), handle, Sampling(), 1, 0, frozenset(), None))
        self.phases.add(running)
        return running


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "_QUIET_S", 0.0)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_without_a_merge_everybody_goes_straight_through() -> None:
    lab = Lab()
    for name in ("a", "b", ""):
        lab.ask(name or "base", name)
    assert lab.told == ["a", "b", "base"]


async def test_a_merge_waits_for_what_runs_and_holds_what_comes() -> None:
    lab = Lab()
    running = [lab.ask("1", "a"), lab.ask("2", "")]
    wanting = asyncio.create_task(lab.phases.want("a"))
    await settle()
    lab.ask("3", "a")
    assert lab.told == ["1", "2"]
    for one in running:
        assert not wanting.done()
        lab.phases.drop(one)
    await wanting
    assert lab.told == ["1", "2", "weights of a", "3"]
    assert lab.phases.in_force == "a"


async def test_whoever_asks_for_something_else_gets_the_base_back_in_his_turn() -> None:
    lab = Lab()
    await lab.phases.want("a")
    first = lab.ask("1", "a")
    lab.ask("2", "b")
    lab.ask("3", "a")
    await settle()
    assert lab.told == ["weights of a", "1"]
    lab.phases.drop(first)
    await settle()
    # The merged adapter's own go on in the batch, through their LoRA.
    assert lab.told == ["weights of a", "1", "weights of None", "2", "3"]
    assert (lab.phases.in_force, lab.phases.wanted) == (None, "a")


async def test_merged_weights_come_back_when_nobody_else_is_left() -> None:
    lab = Lab()
    await lab.phases.want("a")
    other = lab.ask("1", "b")
    await settle()
    own = lab.ask("2", "a")
    lab.phases.drop(other)
    lab.ask("3", "a")
    await settle()
    assert lab.told == ["weights of a", "weights of None", "1", "2"]
    lab.phases.drop(own)
    await settle()
    assert lab.told[4:] == ["weights of a", "3"]


async def test_they_do_not_come_back_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "_QUIET_S", 1e9)
    lab = Lab()
    await lab.phases.want("a")
    other = lab.ask("1", "b")
    await settle()
    lab.phases.drop(other)
    lab.ask("2", "a")
    await settle()
    assert lab.told == ["weights of a", "weights of None", "1", "2"]


async def test_a_merge_that_fails_leaves_everybody_served_unmerged() -> None:
    lab = Lab()
    await lab.phases.want("a")
    lab.fails = True
    with pytest.raises(PreconditionError):
        await lab.phases.want("b")
    lab.ask("1", "a")
    lab.ask("2", "b")
    assert lab.told == ["weights of a", "weights of None", "1", "2"]
    assert (lab.phases.in_force, lab.phases.wanted) == (None, None)


async def test_what_is_cancelled_while_it_waits_holds_up_nobody() -> None:
    lab = Lab()
    await lab.phases.want("a")
    first, waiting = lab.ask("1", "a"), lab.ask("2", "b")
    await settle()
    lab.phases.drop(waiting)
    lab.phases.drop(first)
    await settle()
    lab.ask("3", "")
    await settle()
    assert lab.told[-1] == "3"
    assert lab.phases.in_force is None
