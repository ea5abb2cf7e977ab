"""Who holds which block of the key-value cache, and which blocks hold something worth finding again.

A block is room for `BLOCK_TOKENS` tokens of one sequence, in all layers. A full block may be published under a key
that says everything its numbers depend on: the adapter, and every token up to the block's end. A sequence that begins
with the same tokens under the same adapter shares published blocks instead of computing them. So

- only full blocks are published, and a published block is never written again: whoever computes past it has a block
  of their own;
- a block that its last holder gives back stays findable until its room is needed: the least recently used goes first;
- one block has one key and one key one block: who computes what is published already keeps a private copy.

Every operation is O(1) for each block it names. Knows ids and keys; no tensors.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

BLOCK_TOKENS = 16
"""Tokens of one block."""

BlockKey = bytes
"""The hash of a block's whole past: 32 bytes, so that nobody finds two pasts with one key."""


def root_key(adapter_digest: str | None) -> BlockKey:
    """What the first block's key builds on: the adapter that computed it, or none."""
    if adapter_digest is None:
        return hashlib.sha256(b"weft.kv.base").digest()
    return hashlib.sha256(b"weft.kv.adapter\0" + adapter_digest.encode()).digest()


def next_key(parent: BlockKey, token_ids: Sequence[int]) -> BlockKey:
    """The key of the block after `parent`'s that holds `token_ids` (none, where all of its tokens are virtual).

    Framed by construction: the parent has a fixed length, and a count precedes the tokens.
    """
    return hashlib.sha256(parent + array("q", (len(token_ids), *token_ids)).tobytes()).digest()


def blocks_for(num_tokens: int) -> int:
    """Blocks that so many tokens take."""
    return -(-num_tokens // BLOCK_TOKENS)


class BlockPool:
    """All blocks of one cache. Owns the reference counts and the index of published blocks."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._holders = [0] * num_blocks
        self._key_of: list[BlockKey | None] = [None] * num_blocks
        self._block_of: dict[BlockKey, int] = {}
        # Low ids first, and those given back before those never used: memory is committed as it is first written.
        self._unused = list(range(num_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
        """Published blocks without a holder, least recently used first."""

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can give, idle published ones included."""
        return len(self._unused) + len(self._idle)

    @property
    def num_used(self) -> int:
        """Blocks that somebody holds."""
        return self.num_blocks - self.num_available

    @property
    def num_cached(self) -> int:
        """Published blocks that nobody holds."""
        return len(self._idle)

    def find(self, keys: Iterable[BlockKey]) -> list[int]:
        """The published blocks of the longest run of `keys` from the first on. Takes no hold of them."""
        found: list[int] = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def num_idle(self, blocks: Iterable[int]) -> int:
        """How many of these nobody holds: what sharing them would take from `num_available`."""
        return sum(self._holders[block] == 0 for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Takes one more hold of each of these published blocks."""
        for block in blocks:
            assert self._key_of[block] is not None, f"block {block} is not published"
            if self._holders[block] == 0:
                del self._idle[block]
            self._holders[block] += 1

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks for one holder to write, or None (and nothing taken) where there are not so many.

        They hold whatever their last holder wrote.
        """
        if count > self.num_available:
            return None
        return [self._take() for _ in range(count)]

    def publish(self, block: int, key: BlockKey) -> None:
        """Makes a full block findable. Its one holder writes it no more. Nothing where the key is taken."""
        assert self._holders[block] == 1, f"block {block} has {self._holders[block]} holders"
        assert self._key_of[block] is None, f"block {block} is published already"
        if key not in self._block_of:
            self._key_of[block] = key
            self._block_of[key] = block

    def release(self, blocks: Sequence[int]) -> None:
        """Gives one hold of each back. In a table's order: its end is forgotten before its beginning, without which
        the end cannot be found."""
        for block in reversed(blocks):
            assert self._holders[block] > 0, f"block {block} has no holder"
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if self._key_of[block] is None:
                    self._unused.append(block)
                else:
                    self._idle[block] = None

    def withdraw(self, block: int) -> None:
        """Makes a block unfindable: nobody will share it any more; those who hold it still do."""
        key = self._key_of[block]
        if key is not None:
            self._key_of[block] = None
            del self._block_of[key]
            if self._holders[block] == 0:
                del self._idle[block]
                self._unused.append(block)

    def holders(self, block: int) -> int:
        """How many hold this block."""
        return self._holders[block]

    def _take(self) -> int:
        if self._unused:
            block = self._unused.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            key = self._key_of[block]
            assert key is not None
            self._key_of[block] = None
            del self._block_of[key]
        self._holders[block] = 1
        return block
