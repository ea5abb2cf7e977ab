"""What the inference service answers, as frozen dataclasses. Knows nothing of gRPC or protobuf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TokenLogprob:
    """One token and the natural logarithm of its probability."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True)
class PositionLogprobs:
    """The log-probabilities at one generated position."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]
    """Most likely first; as many as were asked for."""


@dataclass(frozen=True)
class Summary:
    """What is known of a completion once it has ended."""

    finish_reason: str
    """"length", "eos_token", "stop_sequence" or "time_limit"."""
    stop_sequence: str
    """The stop sequence that ended the text, if one did."""
    input_tokens: int
    generated_tokens: int
    cached_tokens: int
    """Input tokens whose keys and values were reused."""
    adapter_digest: str
    """The version that answered; empty for the base model."""
    part_digests: tuple[str, ...] = ()
    """The versions that answered together; empty unless the request named several."""


@dataclass(frozen=True)
class Chunk:
    """What was generated since the chunk before."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[PositionLogprobs, ...]
    summary: Summary | None
    """In the last chunk only."""


@dataclass(frozen=True)
class Completion:
    """A whole completion."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[PositionLogprobs, ...]
    """Empty unless they were asked for."""
    finish_reason: str
    stop_sequence: str
    input_tokens: int
    generated_tokens: int
    cached_tokens: int
    adapter_digest: str
    part_digests: tuple[str, ...] = ()

    @classmethod
    def from_chunks(cls, chunks: Sequence[Chunk]) -> Completion:
        """The completion that a whole stream spells. Raises `ValueError` if its last chunk is not there."""
        summary = chunks[-1].summary if chunks else None
        if summary is None:
            raise ValueError("the stream ended without a summary: its last chunk is missing")
        return cls(
            text="".join(chunk.text for chunk in chunks),
            token_ids=tuple(token for chunk in chunks for token in chunk.token_ids),
            logprobs=tuple(position for chunk in chunks for position in chunk.logprobs),
            **vars(summary),
        )


@dataclass(frozen=True)
class ModelInfo:
    """The base model that a server has, and what its engine serves."""

    base_name: str
    base: Mapping[str, Any]
    """The `base` block of a manifest for this base."""
    context_length: int
    vocabulary_size: int
    max_batch_size: int
    engine: str
    device: str
    dtype: str
    kinds: tuple[str, ...]
    mergeable_kinds: tuple[str, ...]
    server_version: str


@dataclass(frozen=True)
class Resident:
    """One adapter in a server's memory."""

    reference: str
    """The reference it was first asked for by."""
    digest: str
    kind: str
    resident_bytes: int
    lease_count: int
    """Requests using it now."""
    merged: bool
    requests_served: int
    idle_s: float
    hot: bool
    """Its merged weights are kept ready, or in use: merging it takes no building."""
    tier: str
    """"device" or "host": ready to compute there; "disk": the next request binds it."""
    quarantined: str
    """When and why it was put under quarantine; empty if it is not."""
    reload_problem: str
    """Why it is still served although an alias that names it may have moved on; empty if it has not."""
    generated_tokens: int
    """Through it, since it came into memory."""


@dataclass(frozen=True)
class Residency:
    """A server's adapters. Those in memory come first, each tier most recently used first."""

    adapters: tuple[Resident, ...]
    resident_bytes: int
    limit_bytes: int
    overlay_bytes: int
    overlay_limit_bytes: int
    disk_bytes: int
    """Of pulled artifacts."""
    disk_limit_bytes: int
    generated_tokens: int
    """Through every adapter and the base, since the server started."""


@dataclass(frozen=True)
class Merge:
    """One adapter was merged."""

    adapter_digest: str
    overlay_bytes: int
    """Merged weights held beside the base."""
    build_s: float
    """Building them, off the step thread; 0 when they were kept ready."""
    switch_s: float
    """Swapping them in between two steps."""
    hot: bool
    """Whether they were kept ready from an earlier merge."""
    switch_steps: int
    """Steps that began after the swap was asked for and still had the old weights: 0 or 1."""


@dataclass(frozen=True)
class Unmerge:
    """The merged weights went out of use."""

    adapter_digest: str
    switch_s: float
