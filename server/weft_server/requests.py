"""Protobuf requests checked and turned into `CompletionRequest`s; answers turned into protobuf. The only place that
knows both."""

from __future__ import annotations

import math

from weft.v1 import inference_pb2 as pb
from weft_registry.composition import MAX_PARTS, Part
from weft_registry.errors import InvalidInputError, Violation
from weft_server.completion import Chunk, CompletionRequest, NamedToken, Position, Summary
from weft_server.engine import FinishReason, Sampling

MAX_TEMPERATURE = 100.0
MAX_LOGPROBS = 20
MAX_STOP_SEQUENCES = 16
MAX_STOP_LENGTH = 256

_REASONS = {
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.EOS_TOKEN: pb.FINISH_REASON_EOS_TOKEN,
    FinishReason.STOP_SEQUENCE: pb.FINISH_REASON_STOP_SEQUENCE,
    FinishReason.TIME_LIMIT: pb.FINISH_REASON_TIME_LIMIT,
}


def parse_request(message: pb.GenerateRequest, context_length: int) -> CompletionRequest:
    """Checks every field against its own limits. Raises `InvalidInputError` naming each field that is out of them.

    context_length: the base's, in tokens; more token ids are refused before they are looked at.
    """
    problems: list[Violation] = []

    def check(holds: bool, field: str, description: str) -> None:
        if not holds:
            problems.append(Violation(field, description))

    given = message.WhichOneof("input")
    check(given is not None, "input", "missing: send prompt, messages or token_ids")
    count = len(message.token_ids.ids)
    check(
        count < context_length,
        "token_ids",
        f"{count} tokens leave no room to answer: the context holds {context_length}",
    )
    content = _input(message, given, context_length)
    check(given is None or len(content) > 0, given or "input", "is empty")
    for index, chat in enumerate(message.messages.messages):
        check(bool(chat.role), f"messages[{index}].role", "is empty")
    s = message.sampling
    check(
        math.isfinite(s.temperature) and 0 <= s.temperature <= MAX_TEMPERATURE,
        "sampling.temperature",
        f"{s.temperature:g} is not between 0 and {MAX_TEMPERATURE:g}",
    )
    check(s.top_k >= 0, "sampling.top_k", f"{s.top_k} is negative; 0 keeps every token")
    top_p = s.top_p if s.HasField("top_p") else 1.0
    check(0 < top_p <= 1, "sampling.top_p", f"{top_p:g} is not above 0 and at most 1")
    stopping = message.stopping
    for name in ("max_new_tokens", "min_new_tokens"):
        value = getattr(stopping, name)
        check(value >= 0, f"stopping.{name}", f"{value} is negative")
    stops = tuple(stopping.stop_sequences)
    check(len(stops) <= MAX_STOP_SEQUENCES, "stopping.stop_sequences", f"{len(stops)}; at most {MAX_STOP_SEQUENCES}")
    for index, stop in enumerate(stops[:MAX_STOP_SEQUENCES]):
        check(
            0 < len(stop) <= MAX_STOP_LENGTH,
            f"stopping.stop_sequences[{index}]",
            f"has {len(stop)} characters; 1 to {MAX_STOP_LENGTH}",
        )
    time_limit = stopping.time_limit.ToTimedelta().total_seconds() if stopping.HasField("time_limit") else None
    check(time_limit is None or time_limit > 0, "stopping.time_limit", "is not above 0")
    logprobs = message.logprobs if message.HasField("logprobs") else None
    check(logprobs is None or 0 <= logprobs <= MAX_LOGPROBS, "logprobs", f"{logprobs} is not 0 to {MAX_LOGPROBS}")
    worn = tuple(Part(part.adapter_id, part.weight if part.HasField("weight") else 1.0) for part in message.adapters)
    check(not (worn and message.adapter_id), "adapters", "send either adapters or adapter_id, not both")
    check(len(worn) <= MAX_PARTS, "adapters", f"{len(worn)}; at most {MAX_PARTS}: combine them beforehand")
    for index, part in enumerate(worn[:MAX_PARTS]):
        check(bool(part.reference), f"adapters[{index}].adapter_id", "is empty")
        check(math.isfinite(part.weight), f"adapters[{index}].weight", f"{part.weight} is not a finite number")
    if not worn and message.adapter_id:
        worn = (Part(message.adapter_id),)
    if problems:
        raise InvalidInputError("; ".join(f"{p.field}: {p.description}" for p in problems), violations=problems)
    return CompletionRequest(
        adapters=worn,
        input=content,
        sampling=Sampling(s.temperature, s.top_k, top_p, s.seed if s.HasField("seed") else None),
        max_new_tokens=stopping.max_new_tokens,
        min_new_tokens=stopping.min_new_tokens,
        stop_sequences=stops,
        include_stop_sequence=stopping.include_stop_sequence,
        ignore_eos=stopping.ignore_eos,
        time_limit_s=time_limit,
        logprobs=logprobs,
    )


def _input(
    message: pb.GenerateRequest, given: str | None, context_length: int
) -> str | tuple[tuple[str, str], ...] | tuple[int, ...]:
    if given == "token_ids":
        # A request may carry millions of them, whose copying would keep everybody waiting for the event loop.
        return tuple(message.token_ids.ids[:context_length])
    if given == "messages":
        return tuple((chat.role, chat.content) for chat in message.messages.messages)
    return message.prompt


def stream_message(chunk: Chunk) -> pb.GenerateStreamResponse:
    """One chunk on the wire."""
    return pb.GenerateStreamResponse(
        text=chunk.text,
        token_ids=chunk.token_ids,
        logprobs=[_position(p) for p in chunk.logprobs],
        summary=_summary(chunk.summary) if chunk.summary else None,
    )


def whole_message(chunks: list[Chunk]) -> pb.GenerateResponse:
    """All chunks as one answer; the last one has the summary."""
    summary = chunks[-1].summary
    assert summary is not None
    return pb.GenerateResponse(
        text="".join(chunk.text for chunk in chunks),
        token_ids=[token for chunk in chunks for token in chunk.token_ids],
        logprobs=[_position(p) for chunk in chunks for p in chunk.logprobs],
        summary=_summary(summary),
    )


def _summary(summary: Summary) -> pb.GenerateSummary:
    return pb.GenerateSummary(
        finish_reason=_REASONS[summary.reason],
        stop_sequence=summary.stop_sequence,
        input_token_count=summary.input_count,
        generated_token_count=summary.generated_count,
        cached_token_count=summary.cached_count,
        adapter_digest=summary.adapter_digest,
        part_digests=summary.part_digests,
    )


def _position(position: Position) -> pb.PositionLogprobs:
    return pb.PositionLogprobs(chosen=_token(position.chosen), top=[_token(token) for token in position.top])


def _token(token: NamedToken) -> pb.TokenLogprob:
    return pb.TokenLogprob(token_id=token.token_id, text=token.text, logprob=token.logprob)
