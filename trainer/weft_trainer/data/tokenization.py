"""Rows as token ids, exactly as a server will see them.

The prompt and the completion are tokenized SEPARATELY and joined, with the end-of-sequence token after the completion:

    ids = encode(prompt) + encode(completion, no special tokens) + [EOS]

A server tokenizes only the prompt (with whatever special tokens the tokenizer itself adds; SmolLM2's adds none) and
then generates, so training must not merge a token across that border: write the space that begins the answer into the
completion (" earn"), not at the end of the prompt. A conversation becomes the chat template's text up to and including
the assistant's header, and the answer follows in the same way.

Several answers of one conversation share one example where that is exact: where what the template writes before the
next answer begins with the tokens so far. Where it does not (a template that drops earlier thoughts, a token merged
over the border), the next answer begins an example of its own.

Plain text has no prompt: all of it is learnt but its first token, and what is longer than an example becomes several.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from jinja2 import TemplateError

from weft_registry.errors import InvalidInputError
from weft_trainer.data.dataset import MAX_LENGTH, Bound, Dataset, Example, dataset_of
from weft_trainer.data.formats import RowError
from weft_trainer.data.rows import Problems, Row, Rows
from weft_trainer.quiet import quiet_transformers


class TextEncoder(Protocol):
    """What tokenizing examples needs of a tokenizer."""

    eos: int

    def prompt(self, row: Row) -> list[int]:
        """The prompt's tokens, as a server would make them; of plain text what the tokenizer puts before any.

        Raises `RowError` for a conversation that cannot be written.
        """
        ...

    def completion(self, text: str) -> list[int]:
        """The completion's tokens, without special tokens."""
        ...


class BaseTokenizer:
    """A stored base's tokenizer, through transformers. Owns nothing but it."""

    def __init__(self, directory: Path, eos_token_ids: Sequence[int] = ()) -> None:
        """`eos_token_ids` are those a server stops at; the tokenizer's own is preferred where it is one of them."""
        quiet_transformers()
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(str(directory))
        own = self._tokenizer.eos_token_id
        if own is None and not eos_token_ids:
            raise InvalidInputError(f"the tokenizer in {directory.name} has no end-of-sequence token")
        self.eos: int = int(own if own in eos_token_ids or not eos_token_ids else eos_token_ids[0])
        self.pad: int = int(self._tokenizer.pad_token_id if self._tokenizer.pad_token_id is not None else self.eos)

    def prompt(self, row: Row) -> list[int]:
        """See `TextEncoder.prompt`."""
        if row.prompt is None:
            return list(self._tokenizer("")["input_ids"])
        if isinstance(row.prompt, str):
            return list(self._tokenizer(row.prompt)["input_ids"])
        if self._tokenizer.chat_template is None:
            if row.plain is not None:
                return list(self._tokenizer(row.plain)["input_ids"])
            raise RowError(
                "this base has no chat template: write prompt and completion instead of messages, templates without "
                "chat: true, or take a base that has one"
            )
        turns = [{"role": m.role, "content": m.content} for m in row.prompt]
        try:
            text = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        except TemplateError as error:
            raise RowError(f"the base's chat template refuses the conversation: {error}") from error
        # The template writes the special tokens itself.
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def completion(self, text: str) -> list[int]:
        """See `TextEncoder.completion`."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def tokenize(
    rows: Rows,
    encoder: TextEncoder,
    max_length: int,
    loss_on: str = "last",
    invalid: str | None = None,
    bound: Bound = MAX_LENGTH,
) -> Dataset:
    """The rows in tokens. `loss_on` is "last" or "all": which answers of a conversation the loss is over. `invalid` is
    as `read_rows` has it: what happens at a row that this base cannot read. `bound` says what `max_length` is.

    Raises `InvalidInputError` naming the line of such a row, or if none is left.
    """
    examples: list[Example] = []
    kept: list[Row] = []
    truncated: list[int] = []
    dropped: list[int] = []
    problems = Problems(rows.where, len(rows), invalid)
    broken = cut = 0
    for row in rows.rows:
        before = len(examples)
        try:
            if row.prompt is None:
                whole = _windows(row, encoder, max_length)
                cut += len(whole) > 1
            else:
                whole = _conversation(row, encoder) if loss_on == "all" else [_example(row, encoder)]
                broken += len(whole) > 1
        except RowError as error:
            problems.add(row.number, error)
            continue
        for example in whole:
            over = len(example.ids) - max_length
            if over >= example.prompt_length:
                dropped.append(row.number)
                continue
            if over > 0:
                truncated.append(row.number)
                example = _shorten(example, over)
            examples.append(example)
        if len(examples) > before:
            kept.append(row)
    return dataset_of(rows, kept, examples, max_length, truncated, dropped, problems, broken, cut, bound)


def _example(row: Row, encoder: TextEncoder) -> Example:
    prompt = prompt_tokens(row, encoder)
    return Example((*prompt, *encoder.completion(row.completion), encoder.eos), len(prompt))


def prompt_tokens(row: Row, encoder: TextEncoder) -> list[int]:
    """At least one. Raises `RowError` where there is none, or no way to write the prompt."""
    prompt = encoder.prompt(row)
    if not prompt:
        raise RowError("the prompt is no token at all", repr(row.prompt))
    return prompt


def _windows(row: Row, encoder: TextEncoder, max_length: int) -> list[Example]:
    """A plain text, from its first token to EOS, in examples of at most `max_length` tokens. Each but the first begins
    with the last token of the one before, so that every token but the first is learnt once."""
    special = encoder.prompt(row)
    ids = (*special, *encoder.completion(row.completion), encoder.eos)
    # What the tokenizer puts before a text is read and not learnt; without it, the first token is.
    read = min(max(len(special), 1), max_length - 1)
    starts = range(0, len(ids) - 1, max_length - 1)
    return [Example(ids[start : start + max_length], 1 if start else read) for start in starts]


def _conversation(row: Row, encoder: TextEncoder) -> list[Example]:
    """One example for all answers of a row; where the tokens of one do not continue those before, another begins."""
    if not isinstance(row.prompt, tuple):
        return [_example(row, encoder)]
    found: list[Example] = []
    # What opens a conversation answers nothing.
    answers = [index for index, message in enumerate(row.prompt) if message.role == "assistant" and index > 0]
    parts = [Row(row.prompt[:index], row.prompt[index].content) for index in answers] + [row]
    for part in parts:
        last = _example(part, encoder)
        if found and last.ids[: len(found[-1].ids)] == found[-1].ids and last.prompt_length > len(found[-1].ids):
            found[-1] = Example(last.ids, last.prompt_length, found[-1].spans)
        else:
            found.append(last)
    return found


def _shorten(example: Example, over: int) -> Example:
    """Without its first `over` tokens, and without the earlier completions that this cuts into."""
    earlier = tuple((start - over, end - over) for start, end in example.earlier if start > over)
    return Example(example.ids[over:], example.prompt_length - over, earlier)
