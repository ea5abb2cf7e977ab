"""Pairs of answers, one preferred to the other: {"prompt", "chosen", "rejected"}, as texts or as conversations.

    {"prompt": "...", "chosen": " ...", "rejected": " ..."}                       plain texts
    {"prompt": [messages], "chosen": [message], "rejected": [message]}            conversations
    {"chosen": [messages], "rejected": [messages]}                                the same, the prompt in both lists

A pair becomes two examples, first the chosen one, with the same prompt to the token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weft_trainer.config.run import TrainConfig
from weft_trainer.data import rows as raw
from weft_trainer.data.dataset import Dataset, Example, dataset_of
from weft_trainer.data.formats import Message, Row, RowError, read_row
from weft_trainer.data.records import read_records
from weft_trainer.data.rows import Problems, Reading, Rows, read_each
from weft_trainer.data.tokenization import TextEncoder, prompt_tokens

CHOSEN, REJECTED = "chosen", "rejected"
_USED = frozenset({"prompt", CHOSEN, REJECTED, "margin"})


@dataclass(frozen=True)
class Pairs:
    """The pairs of one file, or a part of them."""

    uri: str
    """The path as it was given."""
    sha256: str
    """Digest of the whole file."""
    split: str
    """"train" or "eval"."""
    pairs: tuple[tuple[Row, Row], ...]
    """(chosen, rejected), with the same prompt."""
    reading: Reading
    """How the whole file was understood."""

    def __len__(self) -> int:
        return len(self.pairs)

    def part(self, split: str, indices: Sequence[int]) -> Pairs:
        """Some of the pairs, under another split's name. What was left out of the file stays with the first split."""
        reading = self.reading if split == self.split else replace(self.reading, left_out=(), unused=())
        return replace(self, split=split, pairs=tuple(self.pairs[i] for i in indices), reading=reading)

    def rows(self) -> Rows:
        """The answers one after another: row 2 i is the chosen one of pair i, row 2 i + 1 the rejected one."""
        return Rows(self.uri, self.sha256, self.split, tuple(row for pair in self.pairs for row in pair), self.reading)


def read_pairs(path: Path, split: str, invalid: str = "error") -> Pairs:
    """The pairs of a file; `invalid` as `read_rows` has it.

    Raises what `read_records` raises, and `InvalidInputError` naming the line and what is wrong with it.
    """
    file = read_records(path)
    found, reading = read_each(file, invalid, "pairs", read_pair)
    return Pairs(file.uri, file.sha256, split, found, reading)


def read_pair(value: Any, number: int = 0) -> tuple[tuple[Row, Row], list[str]]:
    """((chosen, rejected), the keys of the record that are not used). Raises `RowError` naming the key."""
    record = {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else {}
    if not record.keys() >= {CHOSEN, REJECTED}:
        raise RowError('expected {"prompt", "chosen", "rejected"}', f"the keys {sorted(record)}")
    unused = sorted(record.keys() - _USED)
    if isinstance(record[CHOSEN], list) and isinstance(record[REJECTED], list):
        if isinstance(record.get("prompt"), str):
            # Its words are in the lists already, as their first turn.
            unused = sorted([*unused, "prompt"])
        pair, of_turns = _conversations(record)
        unused += sorted(of_turns)
    else:
        if "prompt" not in record:
            raise RowError("prompt: missing; only lists of messages hold their prompt themselves")
        pair = _answer(record, CHOSEN), _answer(record, REJECTED)
    chosen, rejected = (replace(row, number=number, form=form) for row, form in zip(pair, _FORMS, strict=True))
    if chosen.completion == rejected.completion:
        raise RowError("chosen and rejected are the same answer: nothing is preferred")
    return (chosen, rejected), unused


_FORMS = (CHOSEN, REJECTED)


def _answer(record: Mapping[str, Any], side: str) -> Row:
    for key in ("prompt", side):
        if not isinstance(record[key], str) or not record[key]:
            what = "text that is not empty, or lists of messages throughout"
            raise RowError(f"{key}: expected {what}", repr(record[key]))
    return Row(record["prompt"], record[side])


def _conversations(record: Mapping[str, Any]) -> tuple[tuple[Row, Row], set[str]]:
    """(the pair, the keys of its turns that are not used)."""
    sides: dict[str, list[Message]] = {}
    unused: set[str] = set()
    given = record.get("prompt")
    for side in _FORMS:
        turns = [*given, *record[side]] if isinstance(given, list) else record[side]
        try:
            row, of_turns = read_row({"messages": turns}, "messages")
        except RowError as error:
            raise RowError(f"{side}: {error.message}") from error
        assert isinstance(row.prompt, tuple), "messages are read as a conversation"
        unused.update(of_turns)
        sides[side] = [*row.prompt, Message("assistant", row.completion)]
    chosen, rejected = sides[CHOSEN], sides[REJECTED]
    if chosen[:-1] != rejected[:-1]:
        raise RowError("chosen and rejected: expected the same conversation up to the last message, the answer")
    prompt = tuple(chosen[:-1])
    return (Row(prompt, chosen[-1].content), Row(prompt, rejected[-1].content)), unused


def tokenize_pairs(pairs: Pairs, encoder: TextEncoder, max_length: int, invalid: str | None = None) -> Dataset:
    """The pairs in tokens, as `Pairs.rows` orders them. Both examples of a pair lose the same start of their prompt;
    a pair is left out if either answer leaves no room for any prompt. `invalid` as `tokenize` has it.

    Raises `InvalidInputError` naming the line of a pair that this base cannot read, or if none is left.
    """
    rows = pairs.rows()
    problems = Problems(rows.where, len(pairs), invalid)
    kept: list[Row] = []
    examples: list[Example] = []
    truncated: list[int] = []
    dropped: list[int] = []
    for chosen, rejected in pairs.pairs:
        try:
            prompt = prompt_tokens(chosen, encoder)
        except RowError as error:
            problems.add(chosen.number, error)
            continue
        answers = [[*encoder.completion(row.completion), encoder.eos] for row in (chosen, rejected)]
        over = max(0, len(prompt) + max(len(answer) for answer in answers) - max_length)
        if over >= len(prompt):
            dropped.append(chosen.number)
            continue
        if over:
            truncated.append(chosen.number)
        prompt = prompt[over:]
        examples += [Example((*prompt, *answer), len(prompt)) for answer in answers]
        kept += [chosen, rejected]
    return dataset_of(rows, kept, examples, max_length, truncated, dropped, problems)


def pair_datasets(config: TrainConfig, encoder: TextEncoder) -> tuple[list[Dataset], list[Dataset]]:
    """(training, evaluation) of a run over pairs, held out as other examples are."""
    data, seed = config.data, config.training.seed
    training: list[Pairs] = []
    held_out: list[Pairs] = []
    for dataset in data.training_sets:
        pairs = read_pairs(dataset.path, "train", data.invalid)
        fraction = data.fraction_of(dataset)
        if data.eval is None and fraction > 0:
            pairs, part = raw.hold_out(pairs, fraction, seed)
            held_out.append(raw.choose(part, data.eval_rows, seed))
        training.append(raw.choose(pairs, data.train_rows, seed))
    given = [read_pairs(dataset.path, "eval", data.invalid) for dataset in data.evaluation_sets]
    held_out += [raw.choose(pairs, data.eval_rows, seed) for pairs in given]
    made = [
        [tokenize_pairs(pairs, encoder, data.max_length, data.invalid) for pairs in split]
        for split in (training, held_out)
    ]
    return made[0], made[1]
