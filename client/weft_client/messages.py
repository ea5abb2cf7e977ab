"""The inference service's messages: requests built from keywords, answers parsed into `weft_client.results`.

Knows protobuf, and nothing of channels: the sync and the asyncio client share it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypedDict

from google.protobuf.duration_pb2 import Duration

from weft.v1 import inference_pb2 as pb
from weft_client.results import (
    Chunk,
    Completion,
    Merge,
    ModelInfo,
    PositionLogprobs,
    Residency,
    Resident,
    Summary,
    TokenLogprob,
    Unmerge,
)
from weft_registry.composition import parse_parts
from weft_registry.errors import InvalidInputError, UnavailableError, Violation

Worn = str | Sequence[str | tuple[str, float]]
"""Whom a request wears: one reference (empty for the base model), or several adapters together, each with its weight
unless that is 1; also as one string, `a+b*0.5`."""
Messages = Sequence[Mapping[str, str]]
"""A chat: mappings with the keys "role" and "content"."""


class GenerateOptions(TypedDict, total=False):
    """How to generate. What is absent is the server's choice: greedy, up to 128 new tokens."""

    max_new_tokens: int | None
    min_new_tokens: int | None
    temperature: float | None
    """0: greedy."""
    top_k: int | None
    top_p: float | None
    seed: int | None
    """Makes a sampled answer repeatable."""
    stop: str | Sequence[str]
    """Generation ends when one of these appears in the text."""
    include_stop: bool | None
    """Whether the text keeps the stop sequence that ended it."""
    ignore_eos: bool | None
    time_limit_s: float | None
    """Wall time from admission after which the server ends the answer, with what there is."""
    logprobs: int | None
    """How many of the most likely tokens to report at each position besides the chosen one; None: no logprobs."""


def generate_request(
    prompt: str | None,
    adapter: Worn,
    messages: Messages | None,
    token_ids: Sequence[int] | None,
    options: GenerateOptions,
) -> pb.GenerateRequest:
    """The request that these say. Raises `InvalidInputError` unless exactly one input is given and every value fits."""
    unknown = options.keys() - GenerateOptions.__annotations__.keys()
    if unknown:
        known = ", ".join(GenerateOptions.__annotations__)
        raise TypeError(f"unknown option {', '.join(sorted(unknown))}; there are: {known}")
    request = pb.GenerateRequest()
    if isinstance(adapter, str) and ("+" in adapter or "*" in adapter):
        adapter = [(part.reference, part.weight) for part in parse_parts(adapter)]
    if isinstance(adapter, str):
        _fitting("adapter_id", partial(setattr, request, "adapter_id", adapter))
    else:
        for index, part in enumerate(adapter):
            reference, weight = (part, 1.0) if isinstance(part, str) else part
            worn = request.adapters.add()
            _fitting(f"adapters[{index}].adapter_id", partial(setattr, worn, "adapter_id", reference))
            _fitting(f"adapters[{index}].weight", partial(setattr, worn, "weight", weight))
    _set_input(request, prompt, messages, token_ids)
    for field, value in (
        ("sampling.temperature", options.get("temperature")),
        ("sampling.top_k", options.get("top_k")),
        ("sampling.top_p", options.get("top_p")),
        ("sampling.seed", options.get("seed")),
        ("stopping.max_new_tokens", options.get("max_new_tokens")),
        ("stopping.min_new_tokens", options.get("min_new_tokens")),
        ("stopping.include_stop_sequence", options.get("include_stop")),
        ("stopping.ignore_eos", options.get("ignore_eos")),
        ("logprobs", options.get("logprobs")),
    ):
        _set(request, field, value)
    stop = options.get("stop")
    if stop:
        stops = [stop] if isinstance(stop, str) else stop
        _fitting("stopping.stop_sequences", lambda: request.stopping.stop_sequences.extend(stops))
    time_limit_s = options.get("time_limit_s")
    if time_limit_s is not None:
        request.stopping.time_limit.FromNanoseconds(round(time_limit_s * 1e9))
    return request


def parse_chunk(message: pb.GenerateStreamResponse) -> Chunk:
    """One message of a stream."""
    return Chunk(
        text=message.text,
        token_ids=tuple(message.token_ids),
        logprobs=_logprobs(message.logprobs),
        summary=_summary(message.summary) if message.HasField("summary") else None,
    )


def parse_completion(message: pb.GenerateResponse) -> Completion:
    """A unary answer."""
    return Completion(
        text=message.text,
        token_ids=tuple(message.token_ids),
        logprobs=_logprobs(message.logprobs),
        **vars(_summary(message.summary)),
    )


def parse_model_info(message: pb.GetModelInfoResponse) -> ModelInfo:
    """The server's base model."""
    return ModelInfo(
        base_name=message.base_name,
        base=json.loads(message.base_json or b"{}"),
        context_length=message.context_length,
        vocabulary_size=message.vocabulary_size,
        max_batch_size=message.max_batch_size,
        engine=message.engine,
        device=message.device,
        dtype=message.dtype,
        kinds=tuple(message.kinds),
        mergeable_kinds=tuple(message.mergeable_kinds),
        server_version=message.server_version,
    )


def parse_resident(message: pb.ResidentAdapter) -> Resident:
    """One adapter in memory."""
    return Resident(
        reference=message.reference,
        digest=message.digest,
        kind=message.kind,
        resident_bytes=message.resident_bytes,
        lease_count=message.lease_count,
        merged=message.merged,
        requests_served=message.requests_served,
        idle_s=_seconds(message.idle),
        hot=message.hot,
        tier=tier_name(message.tier),
        quarantined=message.quarantined,
        reload_problem=message.reload_problem,
        generated_tokens=message.generated_tokens,
    )


def tier_name(tier: pb.AdapterTier) -> str:
    """A tier by its name: "device", "host" or "disk"."""
    # A newer server may have places that this client has no name for.
    known = tier in pb.AdapterTier.values()
    return pb.AdapterTier.Name(tier).removeprefix("ADAPTER_TIER_").lower() if known else f"unknown ({int(tier)})"


def parse_residency(message: pb.ListResidentResponse) -> Residency:
    """Every adapter in memory, and the limits."""
    return Residency(
        adapters=tuple(parse_resident(adapter) for adapter in message.adapters),
        resident_bytes=message.resident_bytes,
        limit_bytes=message.limit_bytes,
        overlay_bytes=message.overlay_bytes,
        overlay_limit_bytes=message.overlay_limit_bytes,
        disk_bytes=message.disk_bytes,
        disk_limit_bytes=message.disk_limit_bytes,
        generated_tokens=message.generated_tokens,
    )


def parse_merge(message: pb.MergeResponse) -> Merge:
    """The outcome of a merge."""
    return Merge(
        adapter_digest=message.adapter_digest,
        overlay_bytes=message.overlay_bytes,
        build_s=_seconds(message.build_time),
        switch_s=_seconds(message.switch_time),
        hot=message.hot,
        switch_steps=message.switch_steps,
    )


def parse_unmerge(message: pb.UnmergeResponse) -> Unmerge:
    """The outcome of an unmerge."""
    return Unmerge(adapter_digest=message.adapter_digest, switch_s=_seconds(message.switch_time))


def ended(chunk: Chunk | None) -> None:
    """Checks that `chunk`, a stream's last, closes it. Raises `UnavailableError`: half an answer is no answer."""
    if chunk is None or chunk.summary is None:
        raise UnavailableError("the server closed the stream before the end of the answer; ask again")


def _set_input(
    request: pb.GenerateRequest, prompt: str | None, messages: Messages | None, token_ids: Sequence[int] | None
) -> None:
    given = [
        name for name, v in (("prompt", prompt), ("messages", messages), ("token_ids", token_ids)) if v is not None
    ]
    if len(given) != 1:
        raise InvalidInputError(
            f"give exactly one of prompt, messages and token_ids; given: {', '.join(given) or 'none'}",
            violations=(Violation("input", "exactly one of prompt, messages and token_ids"),),
        )
    if prompt is not None:
        _fitting("prompt", partial(setattr, request, "prompt", prompt))
    elif messages is not None:
        # The chat may be empty, and the server says so: without this an empty one would look like no input at all.
        request.messages.SetInParent()
        for index, message in enumerate(messages):
            if set(message) != {"role", "content"}:
                keys = ", ".join(map(str, message))
                raise _refused(f"messages[{index}]", f"expected the keys role and content, found: {keys or 'none'}")
            chat = request.messages.messages.add()
            _fitting(f"messages[{index}].role", partial(setattr, chat, "role", message["role"]))
            _fitting(f"messages[{index}].content", partial(setattr, chat, "content", message["content"]))
    elif token_ids is not None:
        request.token_ids.SetInParent()
        ids = token_ids
        _fitting("token_ids", lambda: request.token_ids.ids.extend(ids))


def _set(request: pb.GenerateRequest, path: str, value: float | None) -> None:
    if value is None:
        return
    head, _, field = path.rpartition(".")
    message = getattr(request, head) if head else request
    _fitting(path, lambda: setattr(message, field, value))


def _fitting(field: str, store: Callable[[], None]) -> None:
    """Stores what fits the wire's type: -1 in an unsigned field, or text in a number, is the caller's error."""
    try:
        store()
    except (TypeError, ValueError) as error:
        raise _refused(field, f"{error}") from error


def _refused(field: str, description: str) -> InvalidInputError:
    return InvalidInputError(f"{field}: {description}", violations=(Violation(field, description),))


def _summary(message: pb.GenerateSummary) -> Summary:
    known = message.finish_reason in pb.FinishReason.values()
    return Summary(
        # A newer server may end an answer for a reason that this client has no name for.
        finish_reason=pb.FinishReason.Name(message.finish_reason).removeprefix("FINISH_REASON_").lower()
        if known
        else f"unknown ({int(message.finish_reason)})",
        stop_sequence=message.stop_sequence,
        input_tokens=message.input_token_count,
        generated_tokens=message.generated_token_count,
        cached_tokens=message.cached_token_count,
        adapter_digest=message.adapter_digest,
        part_digests=tuple(message.part_digests),
    )


def _logprobs(positions: Sequence[pb.PositionLogprobs]) -> tuple[PositionLogprobs, ...]:
    return tuple(
        PositionLogprobs(_token(position.chosen), tuple(_token(token) for token in position.top))
        for position in positions
    )


def _token(message: pb.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(message.token_id, message.text, message.logprob)


def _seconds(duration: Duration) -> float:
    return duration.ToNanoseconds() / 1e9
