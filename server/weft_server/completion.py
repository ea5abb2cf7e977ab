"""One completion from request to last chunk: resolve, lease, tokenize, submit, turn tokens into text, release.

The path is the same for unary and streaming calls. It knows text and adapters' references; it knows no protobuf.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from weft_registry.composition import Part
from weft_registry.errors import InvalidInputError, UnavailableError, Violation
from weft_registry.principal import LOCAL, Principal
from weft_registry.reference import Reference
from weft_server.bridge import EngineBridge
from weft_server.engine import (
    EngineEvent,
    EngineRequest,
    FailEvent,
    FinishEvent,
    FinishReason,
    Sampling,
    TokenLogprobs,
)
from weft_server.recorder import CallRecord
from weft_server.residency import Lease, Residency
from weft_server.stopping import StopMatcher
from weft_server.tokenizer import Detokenizer, Tokenizer

DEFAULT_MAX_NEW_TOKENS = 128


@dataclass(frozen=True)
class CompletionRequest:
    """A request within its fields' limits; what depends on the base or the adapter is checked later."""

    adapters: tuple[Part, ...]
    """Worn together; none for the base model."""
    input: str | tuple[tuple[str, str], ...] | tuple[int, ...]
    """A prompt, (role, content) messages, or token ids."""
    sampling: Sampling
    max_new_tokens: int
    """0 for the default."""
    min_new_tokens: int
    stop_sequences: tuple[str, ...]
    include_stop_sequence: bool
    ignore_eos: bool
    time_limit_s: float | None
    logprobs: int | None


@dataclass(frozen=True)
class NamedToken:
    """A token in a log-probability report."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True)
class Position:
    """Log-probabilities at one position."""

    chosen: NamedToken
    top: tuple[NamedToken, ...]


@dataclass(frozen=True)
class Summary:
    """How a completion ended, and who answered."""

    reason: FinishReason
    stop_sequence: str
    input_count: int
    generated_count: int
    cached_count: int
    """Input tokens whose keys and values were reused."""
    adapter_digest: str
    part_digests: tuple[str, ...] = ()
    """Of a composition."""


@dataclass(frozen=True)
class Chunk:
    """A piece of a completion; the last one carries the summary."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[Position, ...] = ()
    summary: Summary | None = None


@dataclass
class _Progress:
    """What one completion has answered so far."""

    matcher: StopMatcher
    detokenizer: Detokenizer
    count: int = 0
    ended: FinishReason | None = None
    cached: int = 0


class Completer:
    """Runs completions over one engine."""

    def __init__(
        self, bridge: EngineBridge, residency: Residency, tokenizer: Tokenizer, stop_token_ids: frozenset[int]
    ) -> None:
        self._bridge = bridge
        self._residency = residency
        self._tokenizer = tokenizer
        self._stop_token_ids = stop_token_ids

    async def stream(
        self, request: CompletionRequest, call: CallRecord, caller: Principal = LOCAL
    ) -> AsyncGenerator[Chunk, None]:
        """The completion as it is generated. Closing or cancelling the generator frees the request at the next step.

        An adapter that `caller` may not read is not there for it, in memory or not.

        Raises what `Residency.lease`, the tokenizer and `Engine.submit` raise, and `InvalidInputError` for an input
        that does not fit the context.
        """
        begin = time.monotonic()
        if isinstance(request.input, str):
            # Before an adapter is brought in for it.
            self._check_size(request.input, self._bridge.engine.context_room(None))
        for part in request.adapters:
            caller.check_read(Reference.parse(part.reference).adapter)
        lease = await self._residency.lease_composed(request.adapters) if request.adapters else None
        try:
            for name in lease.made_of if lease else ():
                caller.check_read(name)
            room = self._bridge.engine.context_room(lease.handle if lease else None)
            prompt = await asyncio.to_thread(self._encode, request, room)
            engine_request = self._engine_request(request, prompt, lease, room)
            events = self._bridge.submit(engine_request, on_end=lease.end if lease else _nothing, call=call)
        except BaseException:
            if lease:
                lease.release()
            raise
        # From here on the bridge releases the lease, once the engine has let go of the request.
        try:
            progress = _Progress(
                StopMatcher(request.stop_sequences, include=request.include_stop_sequence),
                Detokenizer(self._tokenizer),
            )
            limit = None if request.time_limit_s is None else begin + request.time_limit_s
            while progress.ended is None:
                chunk = await self._next(events, progress, limit, lease)
                if chunk is not None:
                    yield chunk
            tail = "" if progress.matcher.matched else progress.matcher.push(progress.detokenizer.flush())
            if not progress.matcher.matched:
                tail += progress.matcher.flush()
            yield Chunk(
                text=tail,
                summary=Summary(
                    reason=FinishReason.STOP_SEQUENCE if progress.matcher.matched else progress.ended,
                    stop_sequence=progress.matcher.matched or "",
                    input_count=len(prompt),
                    generated_count=progress.count,
                    cached_count=progress.cached,
                    adapter_digest=lease.digest if lease else "",
                    part_digests=lease.parts if lease else (),
                ),
            )
        finally:
            self._bridge.cancel(engine_request.request_id)

    async def _next(
        self, events: asyncio.Queue[EngineEvent], progress: _Progress, limit: float | None, lease: Lease | None
    ) -> Chunk | None:
        """Waits for one event; sets `progress.ended` when it was the last one that matters."""
        timeout = None if limit is None else max(0.0, limit - time.monotonic())
        try:
            async with asyncio.timeout(timeout):
                event = await events.get()
        except TimeoutError:
            progress.ended = FinishReason.TIME_LIMIT
            return None
        if isinstance(event, FinishEvent):
            progress.ended = event.reason
            return None
        if isinstance(event, FailEvent):
            error = event.error or UnavailableError("the request was dropped by the engine")
            raise lease.explain(error) if lease else error
        progress.count += 1
        progress.cached = event.cached_tokens
        text = progress.matcher.push(progress.detokenizer.push(event.token_id))
        if progress.matcher.matched:
            progress.ended = FinishReason.STOP_SEQUENCE
        positions = () if event.logprobs is None else (self._position(event.token_id, event.logprobs),)
        return Chunk(text, (event.token_id,), positions)

    def _check_size(self, text: str, room: int) -> None:
        """Refuses a text that has more bytes than the context has room for, whatever its tokens are."""
        known = self._tokenizer.token_bytes
        if known is not None and (least := known.least_tokens(text)) >= room:
            raise _invalid(
                "input",
                f"{len(text.encode())} bytes are at least {least} tokens (none stands for more than {known.most}), and "
                f"so many tokens leave no room to answer: the context holds {self._held(room)}",
            )

    def _held(self, room: int) -> str:
        """What a request may have of the context, and why that is less than the base has."""
        virtual = self._bridge.engine.context_room(None) - room
        return f"{room} beside the {virtual} virtual tokens of the adapter" if virtual else str(room)

    def _encode(self, request: CompletionRequest, room: int) -> Sequence[int]:
        if isinstance(request.input, str):
            ids: Sequence[int] = self._tokenizer.encode(request.input)
        elif isinstance(request.input[0], int):
            ids = [token for token in request.input if isinstance(token, int)]
        else:
            text = self._tokenizer.render([m for m in request.input if not isinstance(m, int)])
            self._check_size(text, room)
            # The template writes the special tokens itself.
            ids = self._tokenizer.encode(text, special=False)
        if not ids:
            raise _invalid("input", "holds no tokens: send at least one")
        return ids

    def _engine_request(
        self, request: CompletionRequest, prompt: Sequence[int], lease: Lease | None, room: int
    ) -> EngineRequest:
        if len(prompt) >= room:
            raise _invalid(
                "input", f"{len(prompt)} tokens leave no room to answer: the context holds {self._held(room)}"
            )
        vocabulary = self._bridge.engine.info.vocabulary_size
        if max(prompt) >= vocabulary:
            raise _invalid("token_ids", f"{max(prompt)} is not a token of this base: the vocabulary has {vocabulary}")
        most = request.max_new_tokens or min(DEFAULT_MAX_NEW_TOKENS, room - len(prompt))
        if len(prompt) + most > room:
            raise _invalid(
                "stopping.max_new_tokens",
                f"{most} after a prompt of {len(prompt)} exceed the context of {self._held(room)}: ask for at most "
                f"{room - len(prompt)}",
            )
        if request.min_new_tokens > most:
            raise _invalid("stopping.min_new_tokens", f"{request.min_new_tokens} is more than max_new_tokens, {most}")
        return EngineRequest(
            request_id=uuid.uuid4().hex,
            token_ids=tuple(prompt),
            adapter=lease.handle if lease else None,
            sampling=request.sampling,
            max_new_tokens=most,
            min_new_tokens=request.min_new_tokens,
            stop_token_ids=frozenset() if request.ignore_eos else self._stop_token_ids,
            logprobs=request.logprobs,
        )

    def _position(self, token_id: int, logprobs: TokenLogprobs) -> Position:
        def named(token: int, logprob: float) -> NamedToken:
            return NamedToken(token, self._tokenizer.token_text(token), logprob)

        return Position(named(token_id, logprobs.chosen), tuple(named(*pair) for pair in logprobs.top))


def _nothing(event: EngineEvent) -> None:
    """The base model needs no lease."""


def _invalid(name: str, description: str) -> InvalidInputError:
    return InvalidInputError(f"{name}: {description}", violations=[Violation(name, description)])
