"""What the server counts as it answers: calls and their times, and what residency did. The engine counts for itself.

Everything here lives in the event loop and is read there, so nothing is locked and no report is half written. Times are
those of a clock that no adjustment moves.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from weft_registry.errors import WeftError
from weft_registry.wire.status import code_of
from weft_server.histogram import Buckets, scale
from weft_server.stats import Histogram


@dataclass(frozen=True)
class RequestStats:
    """Calls of Generate and GenerateStream."""

    ended: dict[str, int]
    """By gRPC status. A call whose deadline passed is CANCELLED: over the wire the two are one."""
    in_flight: int
    duration_s: Histogram
    """From a call's arrival to its end."""
    first_token_s: Histogram
    """From a call's arrival to its first token."""
    inter_token_s: Histogram
    """Between two tokens of one answer."""


class RequestRecorder:
    """Owns the counts of calls."""

    def __init__(self) -> None:
        self._ended: Counter[str] = Counter()
        self._in_flight = 0
        self._duration_s = Buckets(scale(0.005, 500))
        self._first_token_s = Buckets(scale(0.002, 200))
        self._inter_token_s = Buckets(scale(0.0005, 10))

    def call(self) -> CallRecord:
        """The record of one call that has just arrived: use it as a context around all that is done for the call."""
        self._in_flight += 1
        return CallRecord(self)

    def snapshot(self) -> RequestStats:
        """What was counted so far."""
        return RequestStats(
            ended=dict(self._ended),
            in_flight=self._in_flight,
            duration_s=self._duration_s.snapshot(),
            first_token_s=self._first_token_s.snapshot(),
            inter_token_s=self._inter_token_s.snapshot(),
        )

    def token(self, call: CallRecord, now: float) -> None:
        """The engine delivered a token of this call."""
        if call.last_token is None:
            self._first_token_s.observe(now - call.arrived)
        else:
            self._inter_token_s.observe(now - call.last_token)
        call.last_token = now

    def end(self, call: CallRecord, code: str) -> None:
        """The call ended with this status."""
        self._in_flight -= 1
        self._ended[code] += 1
        self._duration_s.observe(time.monotonic() - call.arrived)


class CallRecord:
    """One call, from its arrival to its end; times are `time.monotonic()`."""

    __slots__ = ("_recorder", "arrived", "last_token")

    def __init__(self, recorder: RequestRecorder) -> None:
        self._recorder = recorder
        self.arrived = time.monotonic()
        self.last_token: float | None = None

    def token(self, now: float) -> None:
        """The engine delivered a token, at this time."""
        self._recorder.token(self, now)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._recorder.end(self, _code(error))


@dataclass(frozen=True)
class ResidencyCounts:
    """What residency did so far."""

    loads: int
    load_failures: int
    load_s: Histogram
    """Pulling, verifying and binding, of the loads that succeeded."""
    evictions: int
    """Adapters that left memory to make room."""
    reloads: int
    merges: int
    unmerges: int
    build_s: Histogram
    switch_s: Histogram


class ResidencyRecorder:
    """Owns the counts of loads, evictions and switches."""

    def __init__(self) -> None:
        self._load_failures = 0
        self._load_s = Buckets(scale(0.005, 50))
        self._evictions = 0
        self._reloads = 0
        self._unmerges = 0
        self._build_s = Buckets(scale(0.001, 50))
        self._switch_s = Buckets(scale(1e-5, 1))

    def loaded(self, seconds: float) -> None:
        """An adapter came in."""
        self._load_s.observe(seconds)

    def load_failed(self) -> None:
        """An adapter did not come in."""
        self._load_failures += 1

    def evicted(self) -> None:
        """An adapter left to make room."""
        self._evictions += 1

    def reloaded(self) -> None:
        """The version that an alias moved to came in for the one before it."""
        self._reloads += 1

    def merged(self, build_s: float, switch_s: float) -> None:
        """Merged weights came into use; 0 seconds of building if they were kept from before."""
        self._build_s.observe(build_s)
        self._switch_s.observe(switch_s)

    def unmerged(self, switch_s: float) -> None:
        """Merged weights went out of use, and nothing took their place."""
        self._unmerges += 1
        self._switch_s.observe(switch_s)

    def snapshot(self) -> ResidencyCounts:
        """What was counted so far."""
        load_s, build_s = self._load_s.snapshot(), self._build_s.snapshot()
        return ResidencyCounts(
            loads=load_s.count,
            load_failures=self._load_failures,
            load_s=load_s,
            evictions=self._evictions,
            reloads=self._reloads,
            merges=build_s.count,
            unmerges=self._unmerges,
            build_s=build_s,
            switch_s=self._switch_s.snapshot(),
        )


def _code(error: BaseException | None) -> str:
    """The name of the status that a call is answered with when this leaves it."""
    if error is None:
        return "OK"
    if isinstance(error, WeftError):
        return str(code_of(error).name)
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "CANCELLED"
    return "INTERNAL"
