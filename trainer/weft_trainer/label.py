"""Preferences from a judge instead of people, the first half of RLAIF (Lee et al. 2023, arXiv:2309.00267).

Every pair of answers is shown to the judge in both orders, and the two distributions over its labels are averaged
(section 2.1 of the paper, "position bias"):

    P(a)    = (P(label 1 | a first) + P(label 2 | b first)) / 2
    margin  = P(chosen) - P(rejected) = |2 P(a) - 1|

`weft train` with `objective: {kind: dpo}` is the second half: it reads what this writes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from weft_registry.artifact import read as read_manifest
from weft_registry.errors import AlreadyExistsError, InvalidInputError
from weft_registry.home import Home
from weft_trainer.data.batches import IGNORE, TokenBatches
from weft_trainer.data.dataset import Example
from weft_trainer.data.formats import ROLES, RowError, read_row
from weft_trainer.data.judging import JudgeTemplate, Labels
from weft_trainer.data.records import read_records
from weft_trainer.data.rows import read_each
from weft_trainer.data.tokenization import BaseTokenizer
from weft_trainer.methods.virtual_tokens import Room
from weft_trainer.methods.worn import open_base, wear
from weft_trainer.modeling.adapted import AdaptedModel
from weft_trainer.progress import Reporter

_BATCH = 16
_KEYS = ("prompt", "response_a", "response_b")


@dataclass(frozen=True)
class Labelled:
    """How labelling ended."""

    rows: int
    """Pairs in the file."""
    written: int
    """Pairs in the output."""
    below_margin: int
    """Left out: the judge prefers one by less than the least margin, or neither."""
    too_long: int
    """Left out: a question is longer than what the judge's context holds beside what it wears."""
    disagreed: int
    """Pairs for which the judge prefers another answer in the other order, of those it was asked about."""
    mean_margin: float
    """Of all pairs that it was asked about."""

    @property
    def disagreement(self) -> float:
        """The share of the pairs asked about whose orders disagree: the judge's position bias."""
        asked = self.rows - self.too_long
        return self.disagreed / asked if asked else 0.0


@dataclass(frozen=True)
class Candidates:
    """One row: two answers to one prompt."""

    prompt: str | tuple[Mapping[str, str], ...]
    answers: tuple[Any, Any]
    """As they are written to the output: texts, or lists of one message."""

    @property
    def question(self) -> str:
        """The prompt for the judge; a conversation as one turn a paragraph."""
        if isinstance(self.prompt, str):
            return self.prompt.strip()
        return "\n\n".join(f"{turn['role']}: {turn['content'].strip()}" for turn in self.prompt)

    @property
    def texts(self) -> tuple[str, str]:
        """The answers for the judge."""
        first, second = (a if isinstance(a, str) else a[0]["content"] for a in self.answers)
        return first.strip(), second.strip()


def label(
    data: Path,
    output: Path,
    report: Reporter,
    *,
    base: str,
    artifact: Path | None = None,
    merged: bool = False,
    template: JudgeTemplate | None = None,
    min_margin: float = 0.0,
    dtype: torch.dtype | None = None,
    home: Home | None = None,
) -> Labelled:
    """Writes the pairs of `data`, {"prompt", "response_a", "response_b"} a row, to `output` as JSON lines of
    {"prompt", "chosen", "rejected", "margin"}, in the file's order; whole or not at all.

    The judge is the stored `base`, wearing `artifact` if there is one, in `dtype` (None: what is fastest here). Pairs
    whose margin is below `min_margin`, or zero, are left out; where that leaves none, no file is written. Raises
    `AlreadyExistsError` if there is something at `output`, `InvalidInputError` naming the line of a row that is no such
    pair, and what opening the judge raises.
    """
    home = home or Home.from_environment()
    if output.exists():
        raise AlreadyExistsError(f"{output} is there already: write to another file, or remove it")
    if artifact is None and merged:
        raise InvalidInputError("merged: the judge wears no artifact that could be merged")
    rows, reading = read_each(read_records(data), None, "pairs", read_candidates)
    if unused := reading.describe_unused():
        report.message(unused)
    stored = open_base(base, home)
    room = Room.of(None if artifact is None else read_manifest(artifact), stored.spec)
    encoder = BaseTokenizer(stored.tokenizer_dir, stored.config.eos_token_ids)
    asked = template or JudgeTemplate()
    labels = Labels.of(asked, encoder)
    examples: list[Example] = []
    fitting: list[int] = []
    for number, row in enumerate(rows):
        (a, b), question = row.texts, row.question
        both = [labels.example(asked.ask(question, *order), encoder) for order in ((a, b), (b, a))]
        if max(len(example.ids) for example in both) <= room.tokens:
            fitting.append(number)
            examples += both
    model = wear(stored, artifact, dtype, home, merged=merged)
    firsts_N2 = first_preferences(model, examples, encoder.pad, labels.last, report).view(-1, 2)
    a_N = (firsts_N2[:, 0] + 1 - firsts_N2[:, 1]) / 2
    # A tie is no disagreement: neither order prefers anybody.
    disagreed = int(((firsts_N2[:, 0] - 0.5) * (0.5 - firsts_N2[:, 1]) < 0).sum())
    lines: list[str] = []
    for number, share in zip(fitting, a_N.tolist(), strict=True):
        # Rounded as it is written: what is zero there is a tie.
        margin = round(abs(2 * share - 1), 6)
        if margin > 0 and margin >= min_margin:
            row = rows[number]
            chosen, rejected = row.answers if share > 0.5 else row.answers[::-1]
            pair = {"prompt": row.prompt, "chosen": chosen, "rejected": rejected, "margin": margin}
            lines.append(json.dumps(pair, ensure_ascii=False) + "\n")
    if lines:
        _write(output, lines)
    return Labelled(
        rows=len(rows),
        written=len(lines),
        below_margin=len(fitting) - len(lines),
        too_long=len(rows) - len(fitting),
        disagreed=disagreed,
        mean_margin=float((2 * a_N - 1).abs().mean()) if len(a_N) else 0.0,
    )


@torch.no_grad()
def first_preferences(
    model: AdaptedModel, examples: Sequence[Example], pad: int, labels: tuple[int, int], report: Reporter
) -> Tensor:
    """The probability of the first label, of the two, at each example's last position: (N,), in float64."""
    found_N = torch.empty(len(examples), dtype=torch.float64)
    # In float32 whatever the base computes in: bfloat16 logits are so coarse that close answers would be ties.
    head_2D = model.base.model.lm_head.weight[list(labels)].float()
    make_batch = TokenBatches(examples, pad)
    order = sorted(range(len(examples)), key=lambda index: (len(examples[index].ids), index))
    with report.task("judging", len(order)) as task:
        for start in range(0, len(order), _BATCH):
            indices = order[start : start + _BATCH]
            batch = {key: value.to(model.base.device) for key, value in make_batch(indices).items()}
            states_ND = model.hidden(batch)[:, :-1][batch["labels"][:, 1:] != IGNORE]
            found_N[indices] = F.linear(states_ND.float(), head_2D).double().softmax(-1)[:, 0].cpu()
            task.advance(len(indices))
    return found_N


def read_candidates(value: Any, number: int = 0) -> tuple[Candidates, list[str]]:
    """(the row in a record, the keys of the record and of its turns that are not used). Raises `RowError` naming what
    is wrong."""
    if problem := _problem(value):
        raise RowError(problem)
    unused = {key for key, item in value.items() if item is not None and key not in _KEYS}
    prompt, *answers = (value[key] for key in _KEYS)
    if isinstance(prompt, str):
        return Candidates(prompt, (answers[0], answers[1])), sorted(unused)
    read = [read_row({"messages": [*prompt, *answer]}, "messages") for answer in answers]
    unused.update(key for _, of_turns in read for key in of_turns)
    turns = tuple({"role": turn["role"], "content": turn["content"]} for turn in prompt)
    first, second = ([{"role": "assistant", "content": row.completion}] for row, _ in read)
    return Candidates(turns, (first, second)), sorted(unused)


def _problem(value: Any) -> str:
    """What is wrong with a record; empty if nothing is."""
    if not isinstance(value, dict) or not value.keys() >= set(_KEYS):
        keys = sorted(value) if isinstance(value, dict) else "of no object"
        return f'expected {{"prompt", "response_a", "response_b"}}, found the keys {keys}'
    conversation = isinstance(value["prompt"], list)
    for key in _KEYS:
        item = value[key]
        if not conversation:
            if not isinstance(item, str) or not item.strip():
                return f"{key}: expected text that is not empty, found {item!r}"
        elif not isinstance(item, list) or not item or not all(_is_message(turn) for turn in item):
            return f'{key}: expected a list of {{"role", "content"}}, as the prompt is one, found {item!r}'
        elif key != "prompt" and (len(item) != 1 or item[0]["role"] != "assistant"):
            return f"{key}: expected one message, the assistant's, found {item!r}"
    return ""


def _is_message(turn: Any) -> bool:
    return (
        isinstance(turn, dict)
        and turn.get("role") in ROLES
        and isinstance(turn.get("content"), str)
        and bool(turn["content"].strip())
    )


def _write(output: Path, lines: Sequence[str]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        staging.write_text("".join(lines), encoding="utf-8")
        staging.replace(output)
    finally:
        staging.unlink(missing_ok=True)
