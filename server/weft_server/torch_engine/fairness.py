"""Whose turn it is: requests wait in one queue for each adapter, and the queues share what is computed fairly.

The rule (start-time fair queueing, Goyal et al. 1996, over tokens). Each adapter, and the base model as one, has an
account of the tokens computed for it:

- the next request is the oldest one of the adapter whose account is lowest; of equal accounts, the oldest request;
- being taken costs every token that the request may compute, prompt and completion; what it did not compute in the end
  is given back;
- whoever comes after a pause starts no lower than the account that was lowest when the latest request was taken: a
  pause earns nothing, and a newcomer waits for nobody's backlog.

So a flood of requests for one adapter delays another's by a request, not by the flood; within one adapter, and between
adapters that have not been served yet, first come is first served.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import count

from weft_server.torch_engine.sequence import Sequence

_FEW = 64


@dataclass(eq=False)
class _Account:
    """One adapter's queue and what has been computed for it."""

    spent: float = 0.0
    waiting: OrderedDict[str, tuple[int, Sequence]] = field(default_factory=OrderedDict)
    """(arrival, sequence) by request id, oldest first."""


class FairQueue:
    """Sequences that wait, by adapter. Operations are O(log n) in the number of adapters that wait."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        self._owner: dict[str, str] = {}
        """The adapter of each waiting request."""
        self._turns: list[tuple[float, int, str]] = []
        """A heap of (spent, arrival of the oldest, digest); entries that are not true any more are passed over."""
        self._lowest = 0.0
        """The account of the request that was taken last."""
        self._arrivals = count()
        self._forget_at = _FEW
        """How many accounts there may be before idle ones are looked for."""

    def __len__(self) -> int:
        return len(self._owner)

    def push(self, sequence: Sequence) -> None:
        """Queues a sequence behind those of its adapter."""
        account = self._accounts.setdefault(sequence.digest, _Account())
        if not account.waiting:
            account.spent = max(account.spent, self._lowest)
        account.waiting[sequence.request.request_id] = (next(self._arrivals), sequence)
        self._owner[sequence.request.request_id] = sequence.digest
        if len(account.waiting) == 1:
            self._enter(sequence.digest)

    def peek(self) -> Sequence | None:
        """The sequence whose turn it is."""
        while self._turns:
            spent, arrival, digest = self._turns[0]
            account = self._accounts.get(digest)
            if account is not None and account.waiting and account.spent == spent:
                oldest, sequence = next(iter(account.waiting.values()))
                if oldest == arrival:
                    return sequence
            heapq.heappop(self._turns)
        return None

    def pop(self) -> Sequence:
        """Takes the sequence whose turn it is, at its full price."""
        sequence = self.peek()
        assert sequence is not None, "nobody waits"
        account = self._accounts[sequence.digest]
        self._lowest = max(self._lowest, account.spent)
        account.spent += _price(sequence)
        self._take(sequence.request.request_id)
        self._forget_idle()
        return sequence

    def settle(self, sequence: Sequence) -> None:
        """Gives back what a sequence that was taken has not computed, now that it has ended."""
        account = self._accounts.get(sequence.digest)
        if account is not None:
            account.spent -= sequence.request.max_new_tokens - sequence.num_generated
            if account.waiting:
                account.spent = max(account.spent, self._lowest)
                self._enter(sequence.digest)

    def remove(self, request_id: str) -> Sequence | None:
        """Takes out one that gave up waiting; it has cost nothing. None if it does not wait here."""
        return self._take(request_id) if request_id in self._owner else None

    def drain(self) -> list[Sequence]:
        """Takes everybody out, in the order of arrival."""
        left = sorted(entry for account in self._accounts.values() for entry in account.waiting.values())
        return [self._take(sequence.request.request_id) for _, sequence in left]

    def _take(self, request_id: str) -> Sequence:
        digest = self._owner.pop(request_id)
        waiting = self._accounts[digest].waiting
        _, sequence = waiting.pop(request_id)
        if waiting:
            self._enter(digest)
        return sequence

    def _enter(self, digest: str) -> None:
        account = self._accounts[digest]
        oldest, _ = next(iter(account.waiting.values()))
        heapq.heappush(self._turns, (account.spent, oldest, digest))

    def _forget_idle(self) -> None:
        """An account that would start anew where it stands says nothing."""
        if len(self._accounts) > self._forget_at:
            for digest, account in list(self._accounts.items()):
                if not account.waiting and account.spent <= self._lowest:
                    del self._accounts[digest]
            self._forget_at = max(_FEW, 2 * len(self._accounts))


def _price(sequence: Sequence) -> int:
    return len(sequence.request.token_ids) + sequence.request.max_new_tokens
