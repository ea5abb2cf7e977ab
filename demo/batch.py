"""Held-out prompts of every task, through their adapters and through the base, in one mixed batch over gRPC."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from weft_client import AsyncInferenceClient

MAX_NEW_TOKENS = 24


@dataclass(frozen=True)
class Question:
    """One held-out row, for one adapter; an empty reference asks the base."""

    task: str
    adapter: str
    prompt: str
    expected: str


@dataclass(frozen=True)
class Outcome:
    """What a batch of questions answered."""

    scores: dict[tuple[str, str], float]
    """Share of exact answers, by task and adapter."""
    answers: dict[tuple[str, str], list[str]]
    seconds: float
    tokens: int


def questions(path: Path, task: str, adapter: str, count: int) -> list[Question]:
    """The first `count` rows of a held-out file."""
    rows = [json.loads(line) for line in path.read_text().splitlines()[:count]]
    return [Question(task, adapter, row["prompt"], row["completion"]) for row in rows]


def ask(server: str, asked: Sequence[Question]) -> Outcome:
    """Asks everything at once: the server sees one stream of requests whose adapters alternate."""
    return asyncio.run(_ask(server, asked))


async def _ask(server: str, asked: Sequence[Question]) -> Outcome:
    begin = time.perf_counter()
    async with AsyncInferenceClient(server) as client:
        done = await asyncio.gather(
            *(client.generate(question.prompt, question.adapter, max_new_tokens=MAX_NEW_TOKENS) for question in asked)
        )
    seconds = time.perf_counter() - begin
    answers: dict[tuple[str, str], list[str]] = {}
    right: dict[tuple[str, str], list[bool]] = {}
    for question, completion in zip(asked, done, strict=True):
        key = (question.task, question.adapter)
        answers.setdefault(key, []).append(completion.text)
        right.setdefault(key, []).append(completion.text.strip() == question.expected.strip())
    scores = {key: sum(found) / len(found) for key, found in right.items()}
    return Outcome(scores, answers, seconds, sum(completion.generated_tokens for completion in done))
