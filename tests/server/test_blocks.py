"""The pool of blocks beside a model that is easy to believe, and the keys that blocks are found by."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from weft_server.torch_engine.blocks import BLOCK_TOKENS, BlockPool, blocks_for, next_key, root_key

KEYS = [bytes([number]) for number in range(12)]


class PoolMachine(RuleBasedStateMachine):
    """Tables come, share, publish and go; the model is the list of tables and a list of idle blocks."""

    @initialize(num_blocks=st.integers(1, 12))
    def start(self, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks)
        self.tables: list[list[int]] = []
        self.key_of: dict[int, bytes] = {}
        self.idle: list[int] = []
        """Published blocks without a holder, least recently used first."""
        self.written: set[int] = set()
        """Blocks that were full when they were published, since they were allocated."""

    def holders(self, block: int) -> int:
        return sum(table.count(block) for table in self.tables)

    def free(self) -> int:
        return self.pool.num_blocks - len({block for table in self.tables for block in table})

    @rule(count=st.integers(0, 5))
    def allocate(self, count: int) -> None:
        unused = self.free() - len(self.idle)
        table = self.pool.allocate(count)
        assert (table is None) == (count > unused + len(self.idle))
        if table is None:
            return
        evicted = self.idle[: max(0, count - unused)]
        del self.idle[: len(evicted)]
        for block in evicted:
            del self.key_of[block]
        assert set(evicted) <= set(table)
        assert len(set(table)) == count
        assert all(self.holders(block) == 0 and block not in self.key_of for block in table)
        self.tables.append(table)
        self.written -= set(table)

    @rule(keys=st.lists(st.sampled_from(KEYS), max_size=4, unique=True))
    def share(self, keys: list[bytes]) -> None:
        by_key = {key: block for block, key in self.key_of.items()}
        expected = []
        for key in keys:
            if key not in by_key:
                break
            expected.append(by_key[key])
        found = self.pool.find(keys)
        assert found == expected
        assert self.pool.num_idle(found) == sum(block in self.idle for block in found)
        self.pool.share(found)
        self.idle = [block for block in self.idle if block not in found]
        self.tables.append(found)

    @precondition(lambda self: any(self.tables))
    @rule(data=st.data(), key=st.sampled_from(KEYS))
    def publish(self, data: st.DataObject, key: bytes) -> None:
        own = [b for table in self.tables for b in table if self.holders(b) == 1 and b not in self.written]
        if own:
            block = data.draw(st.sampled_from(own))
            self.pool.publish(block, key)
            if key not in self.key_of.values():
                self.key_of[block] = key
                self.written.add(block)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.pool.release(table)
        self.idle += [b for b in reversed(table) if self.holders(b) == 0 and b in self.key_of]

    @precondition(lambda self: self.key_of)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(self.key_of)))
        self.pool.withdraw(block)
        del self.key_of[block]
        self.idle = [idle for idle in self.idle if idle != block]

    @invariant()
    def nothing_leaks_and_nobody_shares_what_may_be_written(self) -> None:
        if not hasattr(self, "pool"):
            return
        pool = self.pool
        assert pool.num_available == self.free()
        assert pool.num_used == pool.num_blocks - self.free()
        assert pool.num_cached == len(self.idle)
        for block in range(pool.num_blocks):
            assert pool.holders(block) == self.holders(block)
            if block not in self.written:
                assert self.holders(block) <= 1


TestPool = PoolMachine.TestCase


def test_the_least_recently_used_block_goes_first_and_a_tables_end_before_its_beginning() -> None:
    pool = BlockPool(4)
    table = pool.allocate(2)
    assert table is not None
    for block, key in zip(table, KEYS, strict=False):
        pool.publish(block, key)
    pool.release(table)
    pool.share(pool.find(KEYS[:1]))
    pool.release(table[:1])
    assert pool.allocate(2) is not None
    assert pool.find(KEYS[:2]) == table
    assert pool.allocate(1) == [table[1]]
    assert pool.find(KEYS[:2]) == table[:1]


def test_more_blocks_than_there_are_takes_none() -> None:
    pool = BlockPool(3)
    assert pool.allocate(4) is None
    assert pool.num_available == 3


def test_misuse_is_caught() -> None:
    pool = BlockPool(2)
    table = pool.allocate(1)
    assert table is not None
    with pytest.raises(AssertionError, match="not published"):
        pool.share(table)
    pool.release(table)
    with pytest.raises(AssertionError, match="no holder"):
        pool.release(table)


tokens = st.lists(st.integers(0, 1 << 40), max_size=BLOCK_TOKENS)
roots = st.one_of(st.none(), st.text(max_size=8))


@given(roots, st.lists(tokens, max_size=3), roots, st.lists(tokens, max_size=3))
def test_two_pasts_have_one_key_only_if_they_are_the_same(
    root_a: str | None, past_a: list[list[int]], root_b: str | None, past_b: list[list[int]]
) -> None:
    keys = []
    for root, past in ((root_a, past_a), (root_b, past_b)):
        key = root_key(root)
        for block in past:
            key = next_key(key, block)
        keys.append(key)
    assert (keys[0] == keys[1]) == ((root_a, past_a) == (root_b, past_b))


def test_blocks_for_rounds_up() -> None:
    assert [blocks_for(n) for n in (0, 1, 16, 17)] == [0, 1, 1, 2]
