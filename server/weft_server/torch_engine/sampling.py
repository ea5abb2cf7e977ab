"""From logits to tokens: greedy rows all at once, sampled rows one by one with their own random numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weft_server.engine import Sampling, TokenLogprobs
from weft_server.torch_engine.sequence import Sequence


@dataclass(frozen=True)
class Sampled:
    """One sequence's next token; None where its logits were not finite."""

    token_id: int | None
    logprobs: TokenLogprobs | None


def sample(logits_SV: Tensor, sequences: list[Sequence]) -> list[Sampled]:
    """The next token of each sequence. `logits_SV` is float32 and is not kept; it may be written to."""
    for row, sequence in enumerate(sequences):
        request = sequence.request
        if len(sequence.generated) < request.min_new_tokens and request.stop_token_ids:
            logits_SV[row, list(request.stop_token_ids)] = float("-inf")
    # NaN is the maximum of any row that holds one, so one reduction both picks and checks.
    best_S, token_S = logits_SV.max(dim=-1)
    finite = torch.isfinite(best_S).tolist()
    tokens = token_S.tolist()
    results = []
    for row, sequence in enumerate(sequences):
        if not finite[row]:
            results.append(Sampled(None, None))
            continue
        token = tokens[row]
        if sequence.generator is not None:
            token = draw(logits_SV[row].cpu(), sequence.request.sampling, sequence.generator)
        results.append(Sampled(token, _logprobs(logits_SV[row], token, sequence.request.logprobs)))
    return results


def draw(logits_V: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One token: temperature, then top-k, then top-p (the smallest set whose probability reaches p)."""
    scaled_V = logits_V / sampling.temperature
    if not sampling.top_k and sampling.top_p >= 1.0:
        return int(torch.multinomial(torch.softmax(scaled_V, dim=-1), 1, generator=generator))
    sorted_V, order_V = scaled_V.topk(min(sampling.top_k or len(scaled_V), len(scaled_V)))
    probability_V = torch.softmax(sorted_V, dim=-1)
    # A token stays while those before it have not reached p: the first one always does.
    before_V = probability_V.cumsum(-1) - probability_V
    probability_V = probability_V * (before_V < sampling.top_p)
    return int(order_V[torch.multinomial(probability_V, 1, generator=generator)])


def _logprobs(logits_V: Tensor, token: int, count: int | None) -> TokenLogprobs | None:
    if count is None:
        return None
    logprob_V = torch.log_softmax(logits_V, dim=-1)
    top = logprob_V.topk(count)
    return TokenLogprobs(float(logprob_V[token]), tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True)))
