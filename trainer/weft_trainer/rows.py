"""Examples as they are written: JSONL of prompt and completion, or of messages. Knows nothing of tokens."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft_registry import digest as digests
from weft_registry.errors import InvalidInputError, NotFoundError

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Row:
    """One example: what the model reads, and what it is to answer."""

    prompt: str | tuple[Message, ...]
    """Plain text, or the conversation before the answer."""
    completion: str


@dataclass(frozen=True)
class Rows:
    """The examples of one file, or a part of them."""

    uri: str
    """The path as it was given."""
    sha256: str
    """Digest of the whole file, whichever part of it this is."""
    split: str
    """"train" or "eval"."""
    rows: tuple[Row, ...]

    def part(self, split: str, indices: Sequence[int]) -> Rows:
        """Some of the rows, under another split's name."""
        return Rows(self.uri, self.sha256, split, tuple(self.rows[i] for i in indices))


def read_rows(path: Path, split: str) -> Rows:
    """The examples of a JSONL file.

    Raises `NotFoundError` if there is no file, `InvalidInputError` naming the line and what is wrong with it: an
    example is never skipped for being malformed.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"no data file at {path}") from None
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path}: not UTF-8: {error}") from error
    rows = tuple(_row(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip())
    if not rows:
        raise InvalidInputError(f"{path}: no examples")
    return Rows(str(path), digests.of_bytes(data), split, rows)


def hold_out(rows: Rows, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """(training rows, evaluation rows): `fraction` of them held out, the same ones for the same seed."""
    order = list(range(len(rows.rows)))
    random.Random(seed).shuffle(order)
    held = round(len(order) * fraction)
    if fraction and not 0 < held < len(order):
        raise InvalidInputError(
            f"data.eval_fraction: {fraction} of {len(order)} examples holds out {held}; give data.eval, more examples, "
            "or another fraction"
        )
    return rows.part("train", sorted(order[held:])), rows.part("eval", sorted(order[:held]))


def choose(rows: Rows, most: int | None, seed: int) -> Rows:
    """At most `most` of the rows, the same ones for the same seed."""
    if most is None or most >= len(rows.rows):
        return rows
    return rows.part(rows.split, sorted(random.Random(seed).sample(range(len(rows.rows)), most)))


def _row(line: str, where: str) -> Row:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InvalidInputError(f"{where}: not JSON: {error}") from error
    keys = set(value) if isinstance(value, dict) else set()
    if keys == {"prompt", "completion"}:
        return Row(_text(value, "prompt", where), _text(value, "completion", where))
    if keys == {"messages"}:
        return _conversation(value["messages"], where)
    raise InvalidInputError(
        f'{where}: expected {{"prompt": ..., "completion": ...}} or {{"messages": [...]}}, found the keys '
        f"{sorted(keys) if keys else 'of no object'}"
    )


def _conversation(messages: Any, where: str) -> Row:
    if not isinstance(messages, list) or len(messages) < 2:
        raise InvalidInputError(f"{where}: messages: expected a list of at least two, the last one the answer")
    turns: list[Message] = []
    for index, message in enumerate(messages):
        at = f"{where}: messages[{index}]"
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise InvalidInputError(f'{at}: expected {{"role": ..., "content": ...}}')
        if message["role"] not in ROLES:
            raise InvalidInputError(f"{at}.role: {message['role']!r} is not one of {', '.join(ROLES)}")
        turns.append(Message(message["role"], _text(message, "content", at)))
    if turns[-1].role != "assistant":
        raise InvalidInputError(f"{where}: the last message is {turns[-1].role}'s; expected the assistant's answer")
    return Row(tuple(turns[:-1]), turns[-1].content)


def _text(value: Any, key: str, where: str) -> str:
    text = value[key]
    if not isinstance(text, str) or not text:
        raise InvalidInputError(f"{where}: {key}: expected text that is not empty, found {text!r}")
    return text
