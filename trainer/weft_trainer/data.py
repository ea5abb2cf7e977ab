"""Rows as token ids, exactly as a server will see them.

The prompt and the completion are tokenized SEPARATELY and joined, with the end-of-sequence token after the completion:

    ids = encode(prompt) + encode(completion, no special tokens) + [EOS]

A server tokenizes only the prompt (with whatever special tokens the tokenizer itself adds; SmolLM2's adds none) and
then generates, so training must not merge a token across that border: write the space that begins the answer into the
completion (" earn"), not at the end of the prompt. A conversation becomes the chat template's text up to and including
the assistant's header, and the answer follows in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from weft_registry.errors import InvalidInputError
from weft_trainer.quiet import quiet_transformers
from weft_trainer.rows import Row, Rows


@dataclass(frozen=True)
class Example:
    """One example in tokens."""

    ids: tuple[int, ...]
    """Prompt, completion, EOS."""
    prompt_length: int
    """How many of `ids` are the prompt; at least 1."""

    @property
    def completion_length(self) -> int:
        """Tokens the loss is over, EOS included."""
        return len(self.ids) - self.prompt_length


@dataclass(frozen=True)
class Dataset:
    """Tokenized rows, and what happened to them on the way."""

    rows: Rows
    examples: tuple[Example, ...]
    truncated: int
    """Examples that lost the start of their prompt to `max_length`."""
    dropped: int
    """Examples left out because the completion leaves no room for any prompt."""

    def describe(self) -> str:
        """One line for people."""
        tokens = sum(len(example.ids) for example in self.examples)
        line = f"{self.rows.split}: {len(self.examples)} examples, {tokens} tokens from {self.rows.uri}"
        if self.truncated:
            line += f"; {self.truncated} over data.max_length lost the start of their prompt"
        if self.dropped:
            line += f"; {self.dropped} left out, their completion alone is over data.max_length"
        return line


class TextEncoder(Protocol):
    """What tokenizing examples needs of a tokenizer."""

    eos: int

    def prompt(self, row: Row) -> list[int]:
        """The prompt's tokens, as a server would make them."""
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
        if isinstance(row.prompt, str):
            return list(self._tokenizer(row.prompt)["input_ids"])
        if self._tokenizer.chat_template is None:
            raise InvalidInputError("this base has no chat template: write prompt and completion instead of messages")
        text = self._tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in row.prompt], add_generation_prompt=True, tokenize=False
        )
        # The template writes the special tokens itself.
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def completion(self, text: str) -> list[int]:
        """See `TextEncoder.completion`."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def tokenize(rows: Rows, encoder: TextEncoder, max_length: int) -> Dataset:
    """The rows in tokens. Raises `InvalidInputError` if none is left, or a prompt has no tokens."""
    examples: list[Example] = []
    truncated = dropped = 0
    for row in rows.rows:
        completion = [*encoder.completion(row.completion), encoder.eos]
        prompt = encoder.prompt(row)
        if not prompt:
            raise InvalidInputError(f"{rows.uri}: the prompt {row.prompt!r} is no token at all")
        room = max_length - len(completion)
        if room < 1:
            dropped += 1
            continue
        if len(prompt) > room:
            truncated += 1
            prompt = prompt[-room:]
        examples.append(Example((*prompt, *completion), len(prompt)))
    if not examples:
        raise InvalidInputError(f"{rows.uri}: every completion is over data.max_length ({max_length} tokens); raise it")
    return Dataset(rows, tuple(examples), truncated, dropped)
