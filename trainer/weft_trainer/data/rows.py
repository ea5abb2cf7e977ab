"""The examples of one file, as they are written, and what was left out of it. Knows nothing of tokens."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from weft_registry.errors import InvalidInputError
from weft_trainer.data.formats import Message as Message
from weft_trainer.data.formats import Row as Row
from weft_trainer.data.formats import RowError, detect, read_row
from weft_trainer.data.records import RecordFile, place, read_records

R = TypeVar("R")
MOST_NUMBERS = 5
"""How many lines a report names."""


class Splittable(Sized, Protocol):
    """Something of which a part can be held out."""

    @property
    def uri(self) -> str:
        """The file, for messages."""
        ...

    @property
    def split(self) -> str:
        """ "train" or "eval"."""
        ...

    def part(self, split: str, indices: Sequence[int]) -> Self:
        """Some of it, under another split's name."""
        ...


S = TypeVar("S", bound=Splittable)


@dataclass(frozen=True)
class LeftOut:
    """Records that are no examples, for one reason."""

    reason: str
    count: int
    numbers: tuple[int, ...]
    """Their first lines or rows."""


@dataclass(frozen=True)
class Reading:
    """How a file was understood."""

    container: str = "JSONL"
    """"JSONL", "JSON array" or "Parquet"."""
    unit: str = "line"
    """What numbers count: "line" or "row"."""
    left_out: tuple[LeftOut, ...] = ()
    """Records that could not be read."""
    unused: tuple[tuple[str, int], ...] = ()
    """Keys that no example was made of, and in how many records."""

    def describe_unused(self) -> str:
        """For people; empty where every key was used."""
        keys = ", ".join(f"{key} ({count:,} times)" for key, count in self.unused)
        return f"keys not used: {keys}" if keys else ""


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
    reading: Reading = Reading()
    """How the whole file was understood."""
    label: str = ""
    """What distinguishes these from other rows of the same file and split: "unseen templates"."""
    templates_sha256: str = ""
    """Digest of the file of templates that wrote them; empty without."""
    variant: str = ""
    """What distinguishes them from rows that the same file was read as besides: "with nli.yaml", "as alpaca"."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def title(self) -> str:
        """The file, how it was read and the label, where there are such."""
        named = f"{self.uri} {self.variant}" if self.variant else self.uri
        return f"{named} ({self.label})" if self.label else named

    def where(self, number: int) -> str:
        """The place of a row's record, for messages."""
        return place(self.uri, self.reading.unit, number)

    @property
    def forms(self) -> dict[str, int]:
        """How many rows of each format, or written with each template; the most frequent first."""
        return dict(Counter(row.form for row in self.rows).most_common())

    def part(self, split: str, indices: Sequence[int]) -> Rows:
        """Some of the rows, under another split's name. What was left out of the file stays with the first split."""
        reading = self.reading if split == self.split else replace(self.reading, left_out=(), unused=())
        return replace(self, split=split, rows=tuple(self.rows[i] for i in indices), reading=reading)


def read_rows(path: Path, split: str, form: str | None = None, invalid: str | None = None) -> Rows:
    """The examples of a file. `form` None: of whatever format each record has.

    `invalid` is `data.invalid`, "error" or "drop": what happens at a record that is malformed; None where there is no
    such setting, and it is an error. Raises what `read_records` raises, and
    `InvalidInputError` naming the line and what is wrong with it, or that no example is left.
    """
    file = read_records(path)
    rows, reading = read_each(file, invalid, "examples", lambda value, n: read_row(value, form or detect(value), n))
    return Rows(file.uri, file.sha256, split, rows, reading)


def read_each(
    file: RecordFile, invalid: str | None, what: str, read: Callable[[Any, int], tuple[R, Iterable[str]]]
) -> tuple[tuple[R, ...], Reading]:
    """What `read` makes of each record's value and number, besides the keys it does not use; and how that went.

    `invalid` as `read_rows` has it; raises what is wrong with a record, and `InvalidInputError` that there are no
    `what` at all.
    """
    found: list[R] = []
    unused: Counter[str] = Counter()
    problems = Problems(file.where, len(file.records), invalid)
    for record in file.records:
        try:
            if record.problem:
                raise RowError(record.problem)
            made, ignored = read(record.value, record.number)
        except RowError as error:
            problems.add(record.number, error)
            continue
        found.append(made)
        unused.update(ignored)
    if not found:
        raise InvalidInputError(f"{file.uri}: no {what}: {problems.left_out()[0].reason}")
    reading = Reading(file.container, file.unit, problems.left_out(), tuple(unused.most_common()))
    return tuple(found), reading


class Problems:
    """Collects the records that cannot be read, or stops at the first."""

    def __init__(self, where: Callable[[int], str], records: int, invalid: str | None) -> None:
        """`where` names a record by its number, one of so many `records`; `invalid` as `read_rows` has it."""
        self._where, self._records, self._invalid = where, records, invalid
        self._numbers: dict[str, list[int]] = {}

    def add(self, number: int, error: RowError) -> None:
        """Counts the record, or raises `InvalidInputError` with its line."""
        if self._invalid != "drop":
            more = self._invalid is not None and self._records > 1
            hint = "; data.invalid=drop leaves such records out" if more else ""
            raise InvalidInputError(f"{self._where(number)}: {error.message}{hint}") from error
        self._numbers.setdefault(error.problem, []).append(number)

    def left_out(self) -> tuple[LeftOut, ...]:
        """By reason, the most frequent first."""
        found = [LeftOut(why, len(at), tuple(at[:MOST_NUMBERS])) for why, at in self._numbers.items()]
        return tuple(sorted(found, key=lambda group: -group.count))


def hold_out(whole: S, fraction: float, seed: int) -> tuple[S, S]:
    """(training part, evaluation part): `fraction` of it held out, the same rows for the same seed."""
    order = list(range(len(whole)))
    random.Random(seed).shuffle(order)
    held = round(len(order) * fraction)
    if fraction and not 0 < held < len(order):
        raise InvalidInputError(
            f"data.eval_fraction: {fraction} of {len(order)} examples in {whole.uri} holds out {held}; give data.eval, "
            "more examples, or another fraction"
        )
    return whole.part("train", sorted(order[held:])), whole.part("eval", sorted(order[:held]))


def choose(whole: S, most: int | None, seed: int) -> S:
    """At most `most` of the rows, the same ones for the same seed."""
    if most is None or most >= len(whole):
        return whole
    return whole.part(whole.split, sorted(random.Random(seed).sample(range(len(whole)), most)))
