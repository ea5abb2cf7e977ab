"""From logits to tokens: greedy rows all at once, sampled rows one by one with their own random numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weft_server.engine import Sampling, TokenLogprobs
from weft_server.torch_engine.logits import Logits
from weft_server.torch_engine.scheduler import Part


@dataclass(frozen=True, slots=True)
class Sampled:
    """What became of one part of a step."""

    finite: bool
    """Whether its logits were."""
    token_id: int | None = None
    """The sequence's next token; None where they were not, and after a piece of a prompt that is not its end."""
    logprobs: TokenLogprobs | None = None


_NOT_FINITE, _NOT_YET = Sampled(finite=False), Sampled(finite=True)


def sample(logits: Logits, parts: list[Part]) -> list[Sampled]:
    """The next token of each part's sequence, from the logits of its row, which may be written to."""
    for row, part in enumerate(parts):
        request = part.sequence.request
        if part.sequence.num_generated < request.min_new_tokens and request.stop_token_ids:
            logits = logits.forbid(row, list(request.stop_token_ids))
    finite, tokens, logits_SV = logits.finite, logits.token_S.tolist(), logits.logits_SV
    results = []
    for row, part in enumerate(parts):
        if not finite[row] or not part.samples:
            results.append(_NOT_YET if finite[row] else _NOT_FINITE)
            continue
        token, sequence = tokens[row], part.sequence
        if sequence.generator is not None:
            token = draw(logits_SV[row].cpu(), sequence.request.sampling, sequence.generator)
        results.append(Sampled(True, token, _logprobs(logits_SV[row], token, sequence.request.logprobs)))
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
