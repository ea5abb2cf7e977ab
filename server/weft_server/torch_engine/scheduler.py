"""Who runs next: a first-come queue in front of the running batch.

A waiting sequence joins as soon as there is a row, cache and prompt room for it; nothing that runs is ever disturbed.
The scheduler owns the queue, the running sequences and the cache; it computes nothing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from weft_server.torch_engine.kv_cache import KvCache
from weft_server.torch_engine.sequence import Sequence


@dataclass(frozen=True)
class Plan:
    """The sequences of one step."""

    decodes: list[Sequence]
    """One new token each."""
    prefills: list[Sequence]
    """Their whole prompt."""

    @property
    def sequences(self) -> list[Sequence]:
        """In the order in which the step computes them."""
        return self.decodes + self.prefills


class Scheduler:
    """The queue, the running batch and the cache."""

    def __init__(self, cache: KvCache[Sequence], *, max_batch_size: int, max_prefill_tokens: int) -> None:
        self.cache = cache
        self._max_batch_size = max_batch_size
        self._max_prefill_tokens = max_prefill_tokens
        self._waiting: deque[Sequence] = deque()
        self._running: dict[str, Sequence] = {}

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence."""
        self._waiting.append(sequence)

    def schedule(self) -> Plan:
        """The next step: everything that runs, and those who can join."""
        decodes = list(self._running.values())
        prefills: list[Sequence] = []
        tokens = 0
        while self._waiting and len(self._running) < self._max_batch_size:
            candidate = self._waiting[0]
            tokens += len(candidate.request.token_ids)
            # One prompt always goes, however long; several share a step only while they are short together.
            if prefills and tokens > self._max_prefill_tokens:
                break
            if not self.cache.fits(candidate.most_tokens):
                break
            candidate.arena = self.cache.add(candidate, candidate.most_tokens)
            self._waiting.popleft()
            if candidate.prefix is not None:
                candidate.arena.write_prefix(candidate.arena.row(candidate), candidate.prefix)
                candidate.cached = candidate.prefix.length
            self._running[candidate.request.request_id] = candidate
            prefills.append(candidate)
        return Plan(decodes, prefills)

    def remove(self, request_id: str) -> Sequence | None:
        """Takes a sequence out, wherever it is, and frees what it held. None if it is not here."""
        sequence = self._running.pop(request_id, None)
        if sequence is not None:
            assert sequence.arena is not None
            self.cache.remove(sequence, sequence.arena, wipe=sequence.failed)
            sequence.arena = None
            return sequence
        for waiting in self._waiting:
            if waiting.request.request_id == request_id:
                self._waiting.remove(waiting)
                return waiting
        return None

    def drain(self) -> list[Sequence]:
        """Takes everything out."""
        ids = [s.request.request_id for s in (*self._running.values(), *self._waiting)]
        return [found for request_id in ids if (found := self.remove(request_id)) is not None]

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute."""
        return not self._running and not self._waiting

    @property
    def waiting_count(self) -> int:
        """Sequences in the queue."""
        return len(self._waiting)
