"""Who runs next: waiting sequences, the running batch, and the blocks that it holds.

A step is planned anew each time, in this order:

1. every sequence that is answering gets one row;
2. prompts that have begun go on, oldest first, as far as the step's prompt tokens reach;
3. waiting sequences join while there is a row, prompt tokens, blocks and an adapter's place for them: first those that
   were preempted, then whoever's turn it is (`FairQueue`). Nobody overtakes the one whose turn it is, so that nobody
   waits for ever for room that others keep taking.

A long prompt is computed in pieces, so it never holds up those who are answering by more than a piece.

A sequence gets blocks for the tokens it has, not for those it may reach. When one that is answering needs a block and
there is none, the sequence that was admitted last gives its blocks back and waits again, at the front. What it had
generated stays: it is computed again as if it were prompt, mostly from blocks that are still cached, and its random
numbers go on where they were. The oldest sequence is never preempted for another, so it always ends.

The scheduler owns the queue, the running sequences and the pool of blocks; it computes nothing.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field

from weft_adapters.kinds.kind import KeyValues
from weft_server.histogram import Buckets
from weft_server.stats import QUEUE_SECONDS_BOUNDS
from weft_server.torch_engine.blocks import BLOCK_TOKENS, BlockPool, blocks_for
from weft_server.torch_engine.fairness import FairQueue
from weft_server.torch_engine.kv_cache import KvStore
from weft_server.torch_engine.sequence import Sequence


@dataclass(frozen=True)
class Limits:
    """What a step may hold."""

    max_batch_size: int
    """Sequences in the batch."""
    max_prefill_tokens: int
    """Prompt tokens of a step in which somebody is answering: what bounds the time between two of their tokens."""
    max_idle_prefill_tokens: int
    """Prompt tokens of a step in which nobody is; less than `max_prefill_tokens` counts as that."""
    max_active_adapters: int
    """Different adapters in the batch."""


@dataclass(frozen=True, slots=True)
class Part:
    """One sequence's share of a step: the next `count` of its tokens that are not cached."""

    sequence: Sequence
    count: int
    samples: bool
    """Whether these are all of its tokens, so that the step's result is its next one."""


@dataclass
class SchedulerCounts:
    """What the scheduler has done so far; see `EngineStats`."""

    cached_tokens: int = 0
    preemptions: int = 0
    prefix_hit_tokens: int = 0
    prefix_miss_tokens: int = 0
    queue_seconds: Buckets = field(default_factory=lambda: Buckets(QUEUE_SECONDS_BOUNDS))


class Scheduler:
    """The queue, the running batch and the blocks."""

    def __init__(self, store: KvStore, limits: Limits) -> None:
        self.pool = BlockPool(store.num_blocks)
        self.counts = SchedulerCounts()
        self._store = store
        self._limits = limits
        self._waiting = FairQueue()
        self._preempted: deque[Sequence] = deque()
        """Oldest first."""
        self._preempted_now = False
        """Whether the step that is being planned preempted somebody."""
        self._running: dict[str, Sequence] = {}
        """In the order of admission."""
        self._wearers: Counter[str] = Counter()
        """Running sequences by adapter, without those of the base model."""

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence. Its `most_tokens` fit into the cache: the caller made sure."""
        self._waiting.push(sequence)

    def schedule(self) -> list[Part]:
        """The next step: everything that runs, and those who can join. Empty when there is nothing to compute."""
        parts = [Part(sequence, 1, True) for sequence in self._grow()]
        limits = self._limits
        budget = limits.max_prefill_tokens if parts else max(limits.max_prefill_tokens, limits.max_idle_prefill_tokens)
        for sequence in self._running.values():
            left = sequence.num_tokens - sequence.num_cached
            if left > 1 and budget > 0:
                parts.append(_part(sequence, min(left, budget)))
                budget -= parts[-1].count
        # Whoever joined now would take the blocks that were just given back.
        while budget > 0 and not self._preempted_now and (candidate := self._admit()) is not None:
            parts.append(_part(candidate, min(candidate.num_tokens - candidate.num_cached, budget)))
            budget -= parts[-1].count
        return parts

    def computed(self, part: Part) -> None:
        """Notes that a step has cached a part's tokens, and that its numbers were finite."""
        sequence = part.sequence
        sequence.num_cached += part.count
        if sequence.num_cached // BLOCK_TOKENS > sequence.num_published:
            keys = sequence.keys()
            while sequence.num_published < sequence.num_cached // BLOCK_TOKENS:
                index = sequence.num_published
                self.pool.publish(sequence.blocks[index], keys[index])
                sequence.num_published += 1

    def remove(self, request_id: str, *, poisoned: bool = False) -> Sequence | None:
        """Takes a sequence out, wherever it is, and frees what it held. None if it is not here.

        The blocks of one that is `poisoned`, whose numbers are not finite, are found by nobody and cleared.
        """
        sequence = self._running.pop(request_id, None)
        if sequence is not None:
            self._free(sequence, poisoned=poisoned)
            self._waiting.settle(sequence)
            return sequence
        for preempted in self._preempted:
            if preempted.request.request_id == request_id:
                self._preempted.remove(preempted)
                self._waiting.settle(preempted)
                return preempted
        return self._waiting.remove(request_id)

    def drain(self) -> list[Sequence]:
        """Takes everything out."""
        held = [*self._running, *(s.request.request_id for s in self._preempted)]
        return [found for request_id in held if (found := self.remove(request_id))] + self._waiting.drain()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute."""
        return not self._running and not self._preempted and not self._waiting

    @property
    def running_count(self) -> int:
        """Sequences in the batch."""
        return len(self._running)

    @property
    def waiting_count(self) -> int:
        """Sequences that wait, preempted ones included."""
        return len(self._waiting) + len(self._preempted)

    @property
    def active_adapters(self) -> int:
        """Different adapters in the batch."""
        return len(self._wearers)

    def _grow(self) -> list[Sequence]:
        """Those who have all but their last token cached, each with a slot for it; preempts for that where it must."""
        self._preempted_now = False
        ready: list[Sequence] = []
        for sequence in list(self._running.values()):
            if sequence.num_tokens - sequence.num_cached > 1 or sequence.request.request_id not in self._running:
                continue
            if sequence.num_cached == len(sequence.blocks) * BLOCK_TOKENS:
                while (block := self.pool.allocate(1)) is None:
                    if self._preempt_last() is sequence:
                        break
                if block is None:
                    continue
                sequence.blocks += block
            ready.append(sequence)
        # In order of admission the victims stand behind those they gave way to, never among them.
        return ready

    def _preempt_last(self) -> Sequence:
        _, sequence = self._running.popitem()
        self._free(sequence, poisoned=False)
        self._preempted.appendleft(sequence)
        self._preempted_now = True
        self.counts.preemptions += 1
        return sequence

    def _admit(self) -> Sequence | None:
        """Moves the sequence whose turn it is into the batch, with blocks for all of its tokens; None if it cannot."""
        if len(self._running) >= self._limits.max_batch_size:
            return None
        sequence = self._preempted[0] if self._preempted else self._waiting.peek()
        if sequence is None:
            return None
        digest = sequence.digest
        if digest and digest not in self._wearers and len(self._wearers) >= self._limits.max_active_adapters:
            return None
        # The last token is always computed: its logits are what the request came for.
        shareable = (sequence.num_tokens - 1) // BLOCK_TOKENS
        shared = self.pool.find(sequence.keys()[:shareable])
        missing = blocks_for(sequence.num_tokens) - len(shared)
        # One block is left for each that runs, or the newcomer would soon be preempted again. A lone sequence needs no
        # such room: it fits as a whole.
        if missing + self.pool.num_idle(shared) + len(self._running) > self.pool.num_available:
            return None
        if self._preempted:
            self._preempted.popleft()
        else:
            self._waiting.pop()
        self.pool.share(shared)
        fresh = self.pool.allocate(missing)
        assert fresh is not None
        sequence.blocks = shared + fresh
        sequence.num_published = len(shared)
        sequence.num_cached = len(shared) * BLOCK_TOKENS
        if sequence.prefix is not None and sequence.num_cached < sequence.num_prefix:
            self._write_prefix(sequence, sequence.prefix)
        self._count(sequence, len(shared) * BLOCK_TOKENS, shareable * BLOCK_TOKENS)
        self._running[sequence.request.request_id] = sequence
        if digest:
            self._wearers[digest] += 1
        return sequence

    def _write_prefix(self, sequence: Sequence, prefix: KeyValues) -> None:
        """Writes the virtual tokens that no shared block holds. Blocks full of them are shared from now on."""
        done = sequence.num_cached
        rest = KeyValues(prefix.key_LHPD[:, :, done:], prefix.value_LHPD[:, :, done:])
        self._store.write_prefix(sequence.blocks[sequence.num_published : blocks_for(prefix.length)], rest)
        self.computed(Part(sequence, prefix.length - done, samples=False))

    def _count(self, sequence: Sequence, hit: int, sought: int) -> None:
        self.counts.prefix_hit_tokens += hit
        self.counts.prefix_miss_tokens += sought - hit
        if sequence.reused_inputs is None:
            sequence.reused_inputs = max(0, hit - sequence.num_virtual)
            self.counts.cached_tokens += sequence.reused_inputs
            self.counts.queue_seconds.observe(time.monotonic() - sequence.submitted_s)

    def _free(self, sequence: Sequence, *, poisoned: bool) -> None:
        blocks = sequence.blocks
        if poisoned:
            for block in blocks:
                self.pool.withdraw(block)
        self.pool.release(blocks)
        if poisoned:
            self._store.clear([block for block in blocks if self.pool.holders(block) == 0])
        sequence.blocks, sequence.num_cached, sequence.num_published = [], 0, 0
        if sequence.digest:
            self._wearers[sequence.digest] -= 1
            if not self._wearers[sequence.digest]:
                del self._wearers[sequence.digest]


def _part(sequence: Sequence, count: int) -> Part:
    return Part(sequence, count, samples=sequence.num_cached + count == sequence.num_tokens)
