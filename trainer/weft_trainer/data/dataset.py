"""Examples in tokens, and what happened to a file's rows on the way there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from weft_registry.errors import InvalidInputError
from weft_trainer.data.rows import MOST_NUMBERS, LeftOut, Problems, Row, Rows


@dataclass(frozen=True)
class Example:
    """One example in tokens."""

    ids: tuple[int, ...]
    """Prompt, completion, EOS."""
    prompt_length: int
    """How many of `ids` are the prompt of the last completion; at least 1."""
    earlier: tuple[tuple[int, int], ...] = ()
    """Earlier completions inside the prompt that the loss is over too, as [start, end), in order."""

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """All completions that the loss is over, as [start, end), in order."""
        return (*self.earlier, (self.prompt_length, len(self.ids)))

    @property
    def completion_length(self) -> int:
        """Tokens the loss is over, EOS included."""
        return sum(end - start for start, end in self.spans)


@dataclass(frozen=True)
class Bound:
    """What an example's length is measured by, in the words of messages."""

    name: str
    way_out: str
    """Where nothing is within it."""


MAX_LENGTH = Bound("data.max_length", "raise it")


@dataclass(frozen=True)
class Dataset:
    """Tokenized rows, and what happened to them on the way."""

    rows: Rows
    """Those that examples were made of."""
    examples: tuple[Example, ...]
    truncated: int
    """Examples that lost the start of their prompt to `max_length`."""
    dropped: int
    """Examples left out because the completion leaves no room for any prompt."""
    max_length: int = 0
    """What `truncated` and `dropped` are measured by."""
    truncated_at: tuple[int, ...] = ()
    """The first lines that `truncated` counts."""
    dropped_at: tuple[int, ...] = ()
    """The first lines that `dropped` counts."""
    broken_conversations: int = 0
    """Conversations that became several examples, because their answers do not continue each other token by token."""
    cut_texts: int = 0
    """Plain texts that became several examples, because they are longer than `max_length`."""
    weight: str = ""
    """The share of draws that the file was given, as a decimal; empty where its size decides."""
    bound: Bound = MAX_LENGTH
    """What `max_length` is."""

    @property
    def tokens(self) -> int:
        """Of all examples."""
        return sum(len(example.ids) for example in self.examples)

    @property
    def loss_tokens(self) -> int:
        """Those that the loss is over."""
        return sum(example.completion_length for example in self.examples)

    def describe(self) -> str:
        """For people: one line, and one for each thing that was left out, shortened or not used."""
        reading, unit = self.rows.reading, self.rows.reading.unit
        over = f"{self.bound.name} ({self.max_length})"
        head = (
            f"{self.rows.split}: {len(self.examples):,} examples, {self.tokens:,} tokens ({self.loss_tokens:,} learnt)"
        )
        if self.rows.split == "eval":
            head = f"eval: {len(self.examples):,} examples, {self.tokens:,} tokens ({self.loss_tokens:,} scored)"
        forms = ", ".join(f"{form} {count:,}" for form, count in self.rows.forms.items())
        lines = [f"{head} from {self.rows.title} ({reading.container}; {forms})"]
        lines += [f"{group.count:,} left out, {group.reason}: {_at(unit, group)}" for group in reading.left_out]
        if self.dropped:
            why = f"their completion alone is over {over}"
            lines.append(f"{self.dropped:,} left out, {why}: {_places(unit, self.dropped_at, self.dropped)}")
        if self.truncated:
            why = f"over {over} lost the start of their prompt"
            lines.append(f"{self.truncated:,} {why}: {_places(unit, self.truncated_at, self.truncated)}")
        if self.broken_conversations:
            lines.append(
                f"{self.broken_conversations:,} conversations are several examples: the chat template does not repeat "
                "earlier answers as they were generated"
            )
        if self.cut_texts:
            lines.append(f"{self.cut_texts:,} texts are several examples: over {over}")
        if unused := reading.describe_unused():
            lines.append(unused)
        return "\n  ".join(lines)

    def provenance(self) -> dict[str, Any]:
        """What an artifact's manifest says of it; canonical JSON."""
        left_out = sum(group.count for group in self.rows.reading.left_out) + self.dropped
        found: dict[str, Any] = {
            "uri": self.rows.uri,
            "sha256": self.rows.sha256,
            "split": self.rows.split,
            "examples": len(self.examples),
            "tokens": self.tokens,
            "forms": self.rows.forms,
            "left_out": left_out,
            "shortened": self.truncated,
        }
        optional = {"weight": self.weight, "label": self.rows.label, "templates_sha256": self.rows.templates_sha256}
        return found | {key: value for key, value in optional.items() if value}


def dataset_of(
    rows: Rows,
    kept: Sequence[Row],
    examples: Sequence[Example],
    max_length: int,
    truncated: Sequence[int],
    dropped: Sequence[int],
    problems: Problems,
    broken_conversations: int = 0,
    cut_texts: int = 0,
    bound: Bound = MAX_LENGTH,
) -> Dataset:
    """The data set of these examples, which some of the rows were `kept` for; `truncated` and `dropped` are the lines
    that `max_length`, which is the `bound`, did that to, `problems` those that could not be read. Raises
    `InvalidInputError` if there are no examples."""
    unreadable = problems.left_out()
    if not examples:
        if unreadable:
            raise InvalidInputError(f"{rows.uri}: no examples: {unreadable[0].reason}")
        raise InvalidInputError(
            f"{rows.uri}: every completion is over {bound.name} ({max_length} tokens); {bound.way_out}"
        )
    reading = replace(rows.reading, left_out=(*rows.reading.left_out, *unreadable))
    return Dataset(
        replace(rows, rows=tuple(kept), reading=reading),
        tuple(examples),
        len(truncated),
        len(dropped),
        max_length,
        tuple(truncated[:MOST_NUMBERS]),
        tuple(dropped[:MOST_NUMBERS]),
        broken_conversations,
        cut_texts,
        bound=bound,
    )


def _at(unit: str, group: LeftOut) -> str:
    return _places(unit, group.numbers, group.count)


def _places(unit: str, numbers: Sequence[int], count: int) -> str:
    named = ", ".join(str(number) for number in numbers)
    return f"{unit}{'s' if count > 1 else ''} {named}{' and on' if count > len(numbers) else ''}"
