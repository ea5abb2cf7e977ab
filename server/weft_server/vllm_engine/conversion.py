"""Between the engine protocol and vLLM: requests to sampling parameters, outputs to events. Imports vLLM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vllm import SamplingParams
from vllm.inputs.engine import embeds_input, tokens_input
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind

from weft_registry.errors import UnavailableError, WeftError
from weft_server.engine import (
    EngineEvent,
    EngineRequest,
    FailEvent,
    FinishEvent,
    FinishReason,
    TokenEvent,
    TokenLogprobs,
)
from weft_server.vllm_engine.adapters import VllmAdapter
from weft_server.vllm_engine.prefix_request import prefix_request
from weft_server.vllm_engine.soft_prompts import SoftPrompt, soft_prompt_request

_SEED_MASK = (1 << 63) - 1
_REASONS = {"stop": FinishReason.EOS_TOKEN, "length": FinishReason.LENGTH}


@dataclass(frozen=True)
class Parts:
    """A request as vLLM takes it."""

    prompt: Any
    params: SamplingParams
    lora: LoRARequest | None
    virtual: int
    """Tokens of the prompt that are not the caller's."""


def parts(request: EngineRequest, adapter: VllmAdapter | None, *, merged: bool) -> Parts:
    """`merged` says that the adapter's weights are in the base's: then there is none to attach."""
    token_ids, salt, extra = list(request.token_ids), None, None
    if adapter is not None and adapter.soft is not None:
        return Parts(_soft(adapter.soft, token_ids), sampling_params(request), None, adapter.num_virtual)
    if adapter is not None and adapter.prefix is not None:
        added = prefix_request(adapter.prefix)
        token_ids, salt, extra = [*added.placeholder_ids, *token_ids], added.cache_salt, added.extra_args
    lora = None if adapter is None or adapter.lora_id is None or merged else lora_request(adapter)
    virtual = 0 if adapter is None else adapter.num_virtual
    return Parts(tokens_input(token_ids, cache_salt=salt), sampling_params(request, extra), lora, virtual)


def _soft(prompt: SoftPrompt, token_ids: list[int]) -> Any:
    parts = soft_prompt_request(prompt, token_ids)
    return embeds_input(
        parts["prompt_embeds"],
        cache_salt=parts["cache_salt"],
        prompt_token_ids=parts["prompt_token_ids"],
        is_token_ids=parts["prompt_is_token_ids"],
    )


def lora_request(adapter: VllmAdapter) -> LoRARequest:
    """The adapter by the names that vLLM knows it by. vLLM keys its prefix cache by both."""
    return LoRARequest(lora_name=adapter.digest, lora_int_id=adapter.lora_id, lora_path=str(adapter.directory))


def sampling_params(request: EngineRequest, extra_args: dict[str, Any] | None = None) -> SamplingParams:
    """What vLLM is asked for: token ids, each as soon as it is there, and no end that the request did not name."""
    sampling = request.sampling
    return SamplingParams(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        # torch takes 63 bits of a seed, as on the other engine.
        seed=None if sampling.seed is None else sampling.seed & _SEED_MASK,
        max_tokens=request.max_new_tokens,
        min_tokens=request.min_new_tokens,
        stop_token_ids=sorted(request.stop_token_ids),
        # The end-of-sequence token is among them if the request wants it to be.
        ignore_eos=True,
        logprobs=request.logprobs,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args=extra_args,
    )


def not_finite(request: EngineRequest) -> WeftError:
    """As the other engine answers it: the reason puts the adapter under quarantine."""
    digest = request.adapter.digest if request.adapter else ""
    who = f"adapter {digest}" if digest else "the base model"
    return WeftError(
        f"{who} produced numbers that are not finite", reason="NOT_FINITE", metadata={"adapter_digest": digest}
    )


def events(request: EngineRequest, output: RequestOutput, *, virtual: int) -> Iterator[EngineEvent]:
    """The events of one output: its tokens, and the end if it is the last. `virtual`: see `Parts`."""
    request_id, completion = request.request_id, output.outputs[0]
    cached = max(0, (output.num_cached_tokens or 0) - virtual)
    for index, token_id in enumerate(completion.token_ids):
        logprobs = None
        if request.logprobs is not None and completion.logprobs is not None:
            logprobs = _logprobs(completion.logprobs[index], token_id, request.logprobs)
        yield TokenEvent(request_id, token_id, logprobs, cached)
    if completion.finish_reason is None:
        return
    reason = _REASONS.get(completion.finish_reason)
    if reason is not None:
        yield FinishEvent(request_id, reason, cached)
    elif completion.finish_reason == "abort":
        yield FailEvent(request_id, None)
    else:
        why = UnavailableError(f"vLLM ended the request: {completion.finish_reason}", reason="ENGINE_FAILED")
        yield FailEvent(request_id, why)


def _logprobs(position: Mapping[int, Any], chosen: int, count: int) -> TokenLogprobs:
    """vLLM's entry has the most likely tokens by rank, and the chosen one wherever it ranks."""
    ranked = sorted((entry.rank, token, entry.logprob) for token, entry in position.items() if entry.rank <= count)
    return TokenLogprobs(float(position[chosen].logprob), tuple((t, float(value)) for _, t, value in ranked[:count]))
