"""What an engine is: token ids in, token ids out, each request through its own adapter.

An engine knows no text, no names and no registry. Requests reach it through `submit` and leave as events; adapters
reach it already verified, as directories to bind. Both the embedded torch engine and vLLM's are behind this protocol.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from weft_registry.errors import WeftError
from weft_registry.manifest import Manifest
from weft_server.stats import EngineStats


@dataclass(frozen=True)
class Artifact:
    """One version on disk, verified."""

    directory: Path
    manifest: Manifest
    digest: str


class AdapterHandle(Protocol):
    """An adapter that an engine holds."""

    @property
    def digest(self) -> str:
        """The version's digest."""
        ...

    @property
    def size_bytes(self) -> int:
        """Bytes that it takes in the engine."""
        ...


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    """0 keeps every token."""
    top_p: float = 1.0
    seed: int | None = None


@dataclass(frozen=True)
class EngineRequest:
    """One completion to compute. Already validated; `adapter` stays leased until the engine's last event."""

    request_id: str
    token_ids: tuple[int, ...]
    adapter: AdapterHandle | None
    sampling: Sampling
    max_new_tokens: int
    min_new_tokens: int
    stop_token_ids: frozenset[int]
    logprobs: int | None
    """How many of the most likely tokens to report at each position; None for no log-probabilities at all."""


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities at one position, before temperature and truncation."""

    chosen: float
    top: tuple[tuple[int, float], ...]
    """(token id, log-probability), most likely first."""


class FinishReason(enum.Enum):
    """Why a completion ended."""

    LENGTH = "length"
    EOS_TOKEN = "eos_token"
    STOP_SEQUENCE = "stop_sequence"
    TIME_LIMIT = "time_limit"


@dataclass(frozen=True)
class TokenEvent:
    """One new token. A stop token is reported like any other, before the finish event."""

    request_id: str
    token_id: int
    logprobs: TokenLogprobs | None
    cached_tokens: int = 0
    """As in `FinishEvent`: whoever stops a request himself sees no such event."""


@dataclass(frozen=True)
class FinishEvent:
    """The last event of a request that ended by itself."""

    request_id: str
    reason: FinishReason
    cached_tokens: int = 0
    """Prompt tokens whose keys and values were found in the cache and not computed; virtual tokens do not count."""


@dataclass(frozen=True)
class FailEvent:
    """The last event of a request that failed, or that was cancelled (no error)."""

    request_id: str
    error: WeftError | None


EngineEvent = TokenEvent | FinishEvent | FailEvent
Deliver = Callable[[Sequence[EngineEvent]], None]
"""Called from the engine's own thread, once a step at most, with that step's events in order."""


@dataclass(frozen=True)
class MergeOutcome:
    """What a merge took."""

    overlay_bytes: int
    build_s: float
    """Making the merged weights, beside the running steps; 0 when they were kept ready."""
    switch_s: float
    """From asking for the swap until it is in force: the rest of the step that is running."""
    switch_steps: int
    """Steps that began after the asking and still had the old weights: 0, or 1 when a step was just about to begin."""
    hot: bool
    """Whether the merged weights were kept ready from an earlier merge."""


@dataclass(frozen=True)
class EngineInfo:
    """What an engine is and can do."""

    name: str
    device: str
    dtype: str
    context_length: int
    vocabulary_size: int
    max_batch_size: int
    kinds: tuple[str, ...]
    mergeable_kinds: tuple[str, ...]


class Engine(Protocol):
    """One base model in memory, computing. Every method may be called from any thread."""

    @property
    def info(self) -> EngineInfo:
        """What it is; constant."""
        ...

    @property
    def alive(self) -> bool:
        """Whether it is computing: started, and neither closed nor dead."""
        ...

    def start(self, deliver: Deliver) -> None:
        """Starts computing."""
        ...

    def close(self) -> None:
        """Fails what is running with `UnavailableError` and stops."""
        ...

    def bind(self, directory: Path, manifest: Manifest, digest: str, parts: Sequence[Artifact] = ()) -> AdapterHandle:
        """Reads an artifact into memory, completely or not at all, with the parts that it is made over. Slow: call it
        from a worker thread.

        Raises what `weft_adapters.binding.bind` raises, and `UnsupportedError` for a kind it does not serve.
        """
        ...

    def compose(self, parts: Sequence[tuple[AdapterHandle, float]], digest: str) -> AdapterHandle:
        """One adapter that does what `parts`, each with its weight, do together, under its own identity. It stands by
        itself: its parts may be released. Slow: call it from a worker thread.

        Raises `UnsupportedError` (`NOT_COMPOSABLE`) for kinds of which there is no such thing, `InvalidInputError` for
        numbers that overflow.
        """
        ...

    def release(self, adapter: AdapterHandle) -> None:
        """Forgets an adapter that no request uses any more and that is not merged."""
        ...

    def context_room(self, adapter: AdapterHandle | None) -> int:
        """Tokens, prompt and completion together, that a request with this adapter may have."""
        ...

    def submit(self, request: EngineRequest) -> None:
        """Queues a request. Raises `ExhaustedError` if it can never fit, or the queue is full."""
        ...

    def cancel(self, request_id: str) -> None:
        """Frees a request at the next step; its last event is a `FailEvent` without error. Unknown ids are ignored:
        the request may just have ended."""
        ...

    def stats(self) -> EngineStats:
        """What it has done so far and is doing now."""
        ...

    def merge(self, adapter: AdapterHandle) -> MergeOutcome:
        """Merges one adapter into the base's weights, in place of any other. Blocks until it is swapped in.

        Raises `MergeRefusedError` for a kind that changes no weight, and `ExhaustedError` (`OVERLAY_MEMORY`) when the
        merged weights do not fit beside those in use.
        """
        ...

    def unmerge(self) -> float:
        """Takes the merged weights out of use; answers the seconds of the swap. They are kept ready while memory allows
        and their adapter is not released. Raises `PreconditionError` if there are none."""
        ...

    @property
    def merged(self) -> AdapterHandle | None:
        """The merged adapter."""
        ...

    @property
    def base_bytes(self) -> int:
        """Bytes of the base's weights."""
        ...

    @property
    def overlay_bytes(self) -> int:
        """Bytes of all merged weights, those in use and those kept ready."""
        ...

    @property
    def overlays(self) -> Mapping[str, int]:
        """Bytes of merged weights by adapter digest, the most recently used last: those in use and those kept ready."""
        ...
