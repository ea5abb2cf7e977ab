"""Text to token ids and back, by the base model's own tokenizer. Knows nothing of requests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as FastTokenizer

from weft_registry.errors import InvalidInputError, NotFoundError, PreconditionError
from weft_server.token_bytes import token_bytes

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_LONG = 4096
"""Characters from which a text is long: tokenizing it takes milliseconds, in which nobody should wait for a lock."""


class Tokenizer:
    """The tokenizer files of a stored base model. Thread-safe: nothing is written after construction."""

    def __init__(self, directory: Path) -> None:
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise NotFoundError(f"the base has no tokenizer.json in {directory.name}: add it again")
        self._tokenizer = FastTokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._config = _read_json(directory / "tokenizer_config.json")
        self._template = self._read_template(directory)
        normalizer = self._tokenizer.normalizer
        self.token_bytes = token_bytes(_read_json(path), normalizer.normalize_str if normalizer else str)
        """What one token stands for at most; None when nobody can tell."""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """A text's token ids; `special` adds those that the tokenizer itself puts around a prompt.

        A long text belongs in a worker thread: it takes about a second for a million characters, during which other
        threads go on.
        """
        if len(text) < _LONG:
            encoding = self._tokenizer.encode(text, add_special_tokens=special)
        else:
            # `encode` keeps Python's lock to its end, which stops event loop and steps; a batch of one lets go of it.
            (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=special)
        ids: list[int] = encoding.ids
        return ids

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """The token ids of `render`'s text. Raises as `render`."""
        # The template writes the special tokens itself.
        return self.encode(self.render(messages), special=False)

    def render(self, messages: Sequence[tuple[str, str]]) -> str:
        """The text of (role, content) messages in the base's chat template, ready for the answer.

        Raises `PreconditionError` for a base without a template, `InvalidInputError` for messages it refuses.
        """
        if self._template is None:
            raise PreconditionError(
                "this base model has no chat template: send a prompt instead of messages", reason="NO_CHAT_TEMPLATE"
            )
        try:
            text: str = self._template.render(
                messages=[{"role": role, "content": content} for role, content in messages],
                add_generation_prompt=True,
                **{name: self._special(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")},
            )
        except TemplateError as error:
            raise InvalidInputError(f"messages: the chat template refuses them: {error}") from error
        return text

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def token_text(self, token_id: int) -> str:
        """One token as text, special tokens included; for log-probabilities."""
        text: str = self._tokenizer.decode([token_id], skip_special_tokens=False)
        return text

    def _special(self, name: str) -> str:
        value = self._config.get(name)
        return str(value.get("content", "")) if isinstance(value, dict) else str(value or "")

    def _read_template(self, directory: Path) -> Any:
        file = directory / "chat_template.jinja"
        source = file.read_text() if file.is_file() else self._config.get("chat_template")
        if not isinstance(source, str):
            return None
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _raise_template_error
        environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
        environment.filters["tojson"] = lambda value, **kwargs: json.dumps(value, ensure_ascii=False, **kwargs)
        return environment.from_string(source)


class Detokenizer:
    """Token ids as they come, text as soon as it is certain.

    A token may end in the middle of a character; its text waits until the character is whole.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0
        """Where the ids begin that are decoded together: enough of the past for the next token's spacing."""
        self._read = 0
        """Ids before this one have been answered as text."""

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        self._ids.append(token_id)
        known = self._tokenizer.decode(self._ids[self._start : self._read])
        text = self._tokenizer.decode(self._ids[self._start :])
        if text.endswith(_REPLACEMENT):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return text[len(known) :]

    def flush(self) -> str:
        """What is left when no more tokens come."""
        known = self._tokenizer.decode(self._ids[self._start : self._read])
        text = self._tokenizer.decode(self._ids[self._start :])
        self._start = self._read = len(self._ids)
        return text[len(known) :]


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = json.loads(path.read_text())
    return value if isinstance(value, dict) else {}


def _raise_template_error(message: str) -> None:
    raise TemplateError(message)
