"""Requests that arrive at their own times, whatever the server does, and what became of each; from one process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from benchmarks.samples import zipf
from weft_client.async_inference import AsyncInferenceClient
from weft_registry.errors import WeftError

PROMPT_LENGTHS = (16, 32, 64, 128, 256)
NEW_TOKENS = (8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Arrival:
    """One request, at its time after the start."""

    at_s: float
    adapter: str
    """Empty for the base."""
    prompt: tuple[int, ...]
    new_tokens: int


@dataclass
class Outcome:
    """What a client saw of one request. Times are seconds after the start."""

    arrival: Arrival
    sent_s: float = 0.0
    messages: list[tuple[float, int]] = field(default_factory=list)
    """When each message with tokens came, and how many it had."""
    error: str = ""

    @property
    def first_token_s(self) -> float:
        """From sending to the first token."""
        return self.messages[0][0] - self.sent_s

    def gaps_s(self, begin_s: float = 0.0, end_s: float = float("inf")) -> list[float]:
        """The times between successive messages, of those that came within the span."""
        times = [at for at, _ in self.messages if begin_s <= at < end_s]
        return [b - a for a, b in pairwise(times)]


def poisson(rate: float, duration_s: float, adapters: Sequence[str], vocabulary_size: int, seed: int) -> list[Arrival]:
    """Arrivals at random times, `rate` a second on average: mixed lengths, and adapters by Zipf's law.

    With one seed, times, prompts and lengths are the same whatever the adapters are.
    """
    generator = torch.Generator().manual_seed(seed)
    arrivals, at_s = [], 0.0
    count = int(2 * rate * duration_s) + 16
    chosen = zipf(count, len(adapters), torch.Generator().manual_seed(seed + 1))
    gaps = torch.empty(count, dtype=torch.float64).exponential_(rate, generator=generator).tolist()
    for gap, adapter in zip(gaps, chosen, strict=True):
        at_s += gap
        if at_s >= duration_s:
            break
        length, new = (int(torch.randint(5, (), generator=generator)) for _ in range(2))
        prompt = torch.randint(100, vocabulary_size, (PROMPT_LENGTHS[length],), generator=generator).tolist()
        arrivals.append(Arrival(at_s, adapters[adapter], tuple(prompt), NEW_TOKENS[new]))
    return arrivals


async def replay(
    client: AsyncInferenceClient, arrivals: Sequence[Arrival], cut_s: float | None = None
) -> list[Outcome]:
    """Sends every request at its time and waits for all of them; at `cut_s` what still runs is cancelled."""
    begin = time.perf_counter()
    outcomes = [Outcome(arrival) for arrival in arrivals]
    tasks = []
    for outcome in outcomes:
        await asyncio.sleep(max(0.0, outcome.arrival.at_s - (time.perf_counter() - begin)))
        tasks.append(asyncio.create_task(_follow(client, outcome, begin)))
    left = None if cut_s is None else max(0.0, cut_s - (time.perf_counter() - begin))
    if tasks:
        _, running = await asyncio.wait(tasks, timeout=left)
        for task in running:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return outcomes


async def _follow(client: AsyncInferenceClient, outcome: Outcome, begin: float) -> None:
    arrival = outcome.arrival
    outcome.sent_s = time.perf_counter() - begin
    chunks = client.stream(
        None, arrival.adapter, token_ids=arrival.prompt, max_new_tokens=arrival.new_tokens, ignore_eos=True
    )
    try:
        async with aclosing(chunks):
            async for chunk in chunks:
                if chunk.token_ids:
                    outcome.messages.append((time.perf_counter() - begin, len(chunk.token_ids)))
    except WeftError as error:
        outcome.error = f"{type(error).__name__}: {error}"
