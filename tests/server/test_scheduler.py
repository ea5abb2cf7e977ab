"""Who runs next, over a cache that only remembers what was written where: no model computes here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from weft_adapters.kinds.kind import Adapter, KeyValues, Kind
from weft_server.engine import EngineRequest, Sampling
from weft_server.torch_engine.blocks import BLOCK_TOKENS, blocks_for
from weft_server.torch_engine.scheduler import Limits, Part, Scheduler
from weft_server.torch_engine.sequence import Sequence as EngineSequence

Slot = tuple[str, int, object]
"""What a slot holds: the adapter that computed it, the position, the token."""


class Remembering(Kind[Any]):
    """A kind whose `params` are its virtual tokens."""

    def key_values(self, adapter: Adapter[Any]) -> KeyValues | None:
        length = adapter.params
        values = torch.arange(length).view(1, 1, length, 1)
        return KeyValues(values, values) if length else None


KIND = Remembering()
ADAPTERS = {name: Adapter(name, KIND, virtual, {}) for name, virtual in (("a", 0), ("b", 0), ("p", 5), ("q", 40))}


class Ledger:
    """A `KvStore` that remembers, and a scheduler over it driven as the stepper drives it."""

    block_bytes = 1

    def __init__(
        self, blocks: int = 64, *, batch: int = 8, prefill: int = 32, idle_prefill: int = 64, adapters: int = 8
    ) -> None:
        self.num_blocks = blocks
        self.slots: dict[tuple[int, int], Slot] = {}
        self.writing_prefix_of = ""
        self.cleared: list[int] = []
        self.prefix_blocks: list[int] = []
        self.scheduler = Scheduler(self, Limits(batch, prefill, idle_prefill, adapters))
        self.tokens: dict[str, list[int]] = {}
        self.finished: list[str] = []
        self.sequences: dict[str, EngineSequence] = {}

    # What a KvStore does.

    def write_prefix(self, blocks: Sequence[int], prefix: KeyValues) -> None:
        for index, position in enumerate(prefix.key_LHPD.flatten().tolist()):
            assert position % BLOCK_TOKENS == index % BLOCK_TOKENS
            self.slots[blocks[index // BLOCK_TOKENS], index % BLOCK_TOKENS] = ("virtual", position, None)
        self.prefix_blocks += blocks

    def clear(self, blocks: Sequence[int]) -> None:
        self.cleared += blocks

    # What a stepper does.

    def submit(self, name: str, prompt: Sequence[int], new: int = 4, adapter: str | None = None) -> None:
        request = EngineRequest(name, tuple(prompt), None, Sampling(), new, 0, frozenset(), None)
        self.sequences[name] = EngineSequence(request, ADAPTERS.get(adapter or "") or _lora(adapter))
        self.scheduler.add(self.sequences[name])

    def step(self) -> dict[str, int]:
        """Runs one step; the rows of each request in it."""
        parts = self.scheduler.schedule()
        written: Counter[tuple[int, int]] = Counter()
        for part in parts:
            self._compute(part, written)
        assert all(count == 1 for count in written.values()), "two sequences wrote one slot"
        for part in parts:
            sequence = part.sequence
            self.scheduler.computed(part)
            if part.samples:
                sequence.token_ids.append(next_token(sequence.digest, sequence.token_ids))
                self.tokens[sequence.request.request_id] = sequence.token_ids[len(sequence.request.token_ids) :]
                if sequence.finish_reason() is not None:
                    self.scheduler.remove(sequence.request.request_id)
                    self.finished.append(sequence.request.request_id)
        return {part.sequence.request.request_id: part.count for part in parts}

    def run(self, most: int = 10_000) -> list[dict[str, int]]:
        steps = []
        while not self.scheduler.idle:
            steps.append(self.step())
            assert steps[-1], "something waits and nothing runs"
            assert len(steps) < most
        return steps

    def _compute(self, part: Part, written: Counter[tuple[int, int]]) -> None:
        """Reads everything before the part, and finds what this very sequence would have written; writes the rest."""
        sequence, start = part.sequence, part.sequence.num_cached
        for position in range(start + part.count):
            block, slot = sequence.blocks[position // BLOCK_TOKENS], position % BLOCK_TOKENS
            text = position - sequence.num_virtual
            if text < 0:
                expected: Slot = ("virtual", position, None)
            else:
                expected = (sequence.digest, position, tuple(sequence.token_ids[: text + 1]))
            if position < start:
                assert self.slots[block, slot] == expected
            else:
                assert self.scheduler.pool.holders(block) == 1, "a shared block is written"
                self.slots[block, slot] = expected
                written[block, slot] += 1


def _lora(name: str | None) -> Adapter[Any] | None:
    return None if name is None else Adapter(name, KIND, 0, {})


def next_token(digest: str, past: Sequence[int]) -> int:
    return (sum(past) * 31 + len(past) + sum(digest.encode())) % 7


def alone(prompt: Sequence[int], new: int, adapter: str | None) -> list[int]:
    tokens = list(prompt)
    for _ in range(new):
        tokens.append(next_token(adapter or "", tokens))
    return tokens[len(prompt) :]


def test_a_long_prompt_is_computed_in_pieces_and_holds_nobody_up() -> None:
    ledger = Ledger(prefill=32, idle_prefill=64)
    ledger.submit("short", [1, 2], new=12)
    ledger.step()
    ledger.submit("long", range(200), new=2)
    steps = ledger.run()
    assert [step["long"] for step in steps if "long" in step] == [32] * 6 + [8, 1]
    assert all(step["short"] == 1 for step in steps[:11])
    assert ledger.tokens["long"] == alone(range(200), 2, None)


def test_pieces_are_larger_while_nobody_is_answering() -> None:
    ledger = Ledger(prefill=32, idle_prefill=64)
    ledger.submit("long", range(150), new=1)
    assert [step["long"] for step in ledger.run()] == [64, 64, 22]


def test_prompts_share_a_steps_tokens_oldest_first() -> None:
    ledger = Ledger(prefill=32, idle_prefill=64)
    for name, start in (("x", 0), ("y", 100), ("z", 200)):
        ledger.submit(name, range(start, start + 40), new=4)
    assert ledger.step() == {"x": 40, "y": 24}
    assert ledger.step() == {"x": 1, "y": 16, "z": 16}
    assert ledger.step() == {"x": 1, "y": 1, "z": 24}


def test_the_batch_and_its_adapters_are_limited_and_nobody_overtakes() -> None:
    ledger = Ledger(batch=3, adapters=2)
    for name, adapter in (("1", "a"), ("2", "b"), ("3", "c"), ("4", None)):
        ledger.submit(name, [1], new=3, adapter=adapter)
    # A third adapter has no place yet, and the base model's request stands behind it.
    assert set(ledger.step()) == {"1", "2"}
    ledger.run()
    assert ledger.finished == ["1", "2", "3", "4"]
    assert ledger.scheduler.active_adapters == 0


def test_a_flood_for_one_adapter_does_not_hold_up_another() -> None:
    ledger = Ledger(batch=2)
    for index in range(50):
        ledger.submit(f"flood {index}", [index, index], adapter="a")
    ledger.step()
    ledger.submit("cold", [1, 2], adapter="b")
    ledger.submit("base", [3, 4])
    ledger.run()
    assert ledger.finished.index("cold") <= 4
    assert ledger.finished.index("base") <= 4
    floods = [name for name in ledger.finished if name.startswith("flood")]
    assert floods == [f"flood {index}" for index in range(50)]


def test_two_floods_get_equal_tokens_whatever_the_size_of_their_requests() -> None:
    ledger = Ledger(batch=2)
    for index in range(60):
        ledger.submit(f"a{index}", [index], new=3, adapter="a")
        ledger.submit(f"b{index}", [index], new=15, adapter="b")
    for _ in range(200):
        ledger.step()
    spent = Counter(dict.fromkeys("ab", 0))
    for name, tokens in ledger.tokens.items():
        spent[name[0]] += 1 + len(tokens)
    assert spent["a"] == pytest.approx(spent["b"], rel=0.15)


def test_a_pause_earns_nothing() -> None:
    ledger = Ledger(batch=1)
    for index in range(20):
        ledger.submit(f"early {index}", [1], adapter="a")
    ledger.run()
    for index in range(4):
        ledger.submit(f"a{index}", [1], adapter="a")
        ledger.submit(f"b{index}", [2], adapter="b")
    ledger.run()
    turns = [name[0] for name in ledger.finished[20:]]
    assert turns in (list("abababab"), list("babababa"))


def test_what_was_not_computed_is_given_back() -> None:
    ledger = Ledger(batch=1)
    ledger.submit("a0", [1], new=1000, adapter="a")
    for _ in range(3):
        ledger.step()
    ledger.scheduler.remove("a0")
    for index in range(4):
        ledger.submit(f"b{index}", [2], adapter="b")
        ledger.submit(f"a{index + 1}", [1], adapter="a")
    ledger.run()
    # Had all of a0 been charged, every b would stand before every a.
    assert [name[0] for name in ledger.finished] in (list("abababab"), list("babababa"))


def test_when_blocks_run_out_the_latest_gives_way_comes_back_first_and_answers_the_same() -> None:
    ledger = Ledger(blocks=6, batch=4)
    prompts = {name: [10 * index + i for i in range(14)] for index, name in enumerate("wxyz")}
    for name, prompt in prompts.items():
        ledger.submit(name, prompt, new=30)
    ledger.run()
    assert ledger.scheduler.counts.preemptions > 0
    assert ledger.finished == list("wxyz")
    for name, prompt in prompts.items():
        assert ledger.tokens[name] == alone(prompt, 30, None)
    assert ledger.scheduler.pool.num_used == 0


def test_one_request_may_fill_the_whole_cache() -> None:
    ledger = Ledger(blocks=4)
    ledger.submit("whole", range(20), new=45)
    ledger.submit("other", range(100, 110), new=20)
    ledger.run()
    assert ledger.tokens["whole"] == alone(range(20), 45, None)
    assert ledger.tokens["other"] == alone(range(100, 110), 20, None)


def test_a_preempted_request_can_be_cancelled() -> None:
    ledger = Ledger(blocks=4, batch=2)
    ledger.submit("x", range(16), new=40)
    ledger.submit("y", range(100, 116), new=40)
    while not ledger.scheduler.counts.preemptions:
        assert ledger.step()
    assert ledger.scheduler.waiting_count == 1
    assert ledger.scheduler.remove("y") is ledger.sequences["y"]
    ledger.run()
    assert ledger.finished == ["x"]
    assert ledger.scheduler.pool.num_used == 0


def test_the_same_beginning_is_computed_once_but_the_last_token_always() -> None:
    ledger = Ledger()
    for name in ("first", "second"):
        ledger.submit(name, range(48))
        ledger.run()
    ledger.submit("third", [*range(40), 99])
    ledger.run()
    reused = [ledger.sequences[name].reused_inputs for name in ("first", "second", "third")]
    assert reused == [0, 32, 32]
    assert ledger.scheduler.counts.cached_tokens == 64


def test_a_next_turn_reuses_what_the_answer_computed() -> None:
    ledger = Ledger()
    ledger.submit("turn 1", range(30), new=20)
    ledger.run()
    ledger.submit("turn 2", [*range(30), *ledger.tokens["turn 1"], 5, 6])
    ledger.run()
    assert ledger.sequences["turn 2"].reused_inputs == 48


def test_nothing_is_reused_under_another_adapter() -> None:
    ledger = Ledger()
    for name in (None, "a", "b"):
        ledger.submit(f"by {name}", range(48), adapter=name)
        ledger.run()
    assert ledger.scheduler.counts.prefix_hit_tokens == 0


def test_virtual_tokens_are_written_once_except_a_block_that_they_share_with_text() -> None:
    ledger = Ledger()
    ledger.submit("one", [1, 2, 3], adapter="q")
    ledger.run()
    ledger.submit("two", [4, 5], adapter="q")
    ledger.run()
    # 40 virtual tokens: two blocks of their own, which the second request shares, and half of a third.
    assert len(ledger.prefix_blocks) == 3 + 1
    assert ledger.sequences["two"].reused_inputs == 0
    assert ledger.scheduler.counts.prefix_hit_tokens == 32


def test_poisoned_blocks_are_cleared_and_never_found() -> None:
    ledger = Ledger()
    ledger.submit("bad", range(40), new=4, adapter="a")
    ledger.step()
    held = list(ledger.sequences["bad"].blocks)
    ledger.scheduler.remove("bad", poisoned=True)
    assert sorted(ledger.cleared) == sorted(held)
    ledger.submit("again", range(40), new=4, adapter="a")
    ledger.run()
    assert ledger.sequences["again"].reused_inputs == 0


class Churn(RuleBasedStateMachine):
    """Anything at any time: nobody reads what is not his, nothing leaks, everybody is answered as alone."""

    @initialize(blocks=st.integers(6, 20), batch=st.integers(1, 5), prefill=st.integers(1, 40))
    def start(self, blocks: int, batch: int, prefill: int) -> None:
        self.ledger = Ledger(blocks, batch=batch, prefill=prefill, idle_prefill=prefill, adapters=2)
        self.asked: dict[str, tuple[list[int], int, str | None]] = {}
        self.ended: set[str] = set()

    @rule(
        stem=st.integers(0, 40),
        tail=st.lists(st.integers(0, 1), max_size=6),
        new=st.integers(1, 30),
        adapter=st.sampled_from([None, "a", "p", "q"]),
    )
    def submit(self, stem: int, tail: list[int], new: int, adapter: str | None) -> None:
        # Prompts that begin alike, or nothing would be shared.
        prompt = [*([7] * stem), *tail] or [7]
        name = str(len(self.asked))
        virtual = ADAPTERS[adapter].params if adapter else 0
        if blocks_for(virtual + len(prompt) + new - 1) <= self.ledger.num_blocks:
            self.asked[name] = (prompt, new, adapter)
            self.ledger.submit(name, prompt, new, adapter)

    @rule(count=st.integers(1, 10))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self.ledger.step()

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), poisoned=st.booleans())
    def end(self, data: st.DataObject, poisoned: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.asked)))
        if self.ledger.scheduler.remove(name, poisoned=poisoned):
            self.ended.add(name)
        assert self.ledger.scheduler.remove(name) is None

    def teardown(self) -> None:
        if not hasattr(self, "ledger"):
            return
        self.ledger.run()
        scheduler = self.ledger.scheduler
        assert (scheduler.running_count, scheduler.waiting_count, scheduler.active_adapters) == (0, 0, 0)
        assert scheduler.pool.num_used == 0
        assert sorted(self.ledger.finished) == sorted(self.asked.keys() - self.ended)
        for name in self.ledger.finished:
            assert self.ledger.tokens[name] == alone(*self.asked[name])


TestChurn = Churn.TestCase
TestChurn.settings = settings(max_examples=60, stateful_step_count=30)
