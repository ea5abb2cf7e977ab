"""What the values of a record's fields are written as.

The keys of a template file's `words` are values as JSON has them: true, false, null, a number or a text. 1 is 1.0, and
"1"; a field that is null is written where `words` has null, and otherwise counts as absent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from weft_trainer.config.strict import ConfigError
from weft_trainer.data.formats import RowError

_MOST_WORDS = 10
"""How many of a field's values a message lists."""


def with_words(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """A template file's document, with the keys of `words` as texts: YAML's true as JSON writes it.

    Raises `ConfigError` for a key that is said twice.
    """
    if not isinstance(document.get("words"), Mapping):
        return document
    words: dict[Any, Any] = {}
    for name, of_field in document["words"].items():
        words[name] = of_field
        if isinstance(of_field, Mapping):
            words[name] = {}
            for value, word in of_field.items():
                text = _text(value)
                if text in words[name]:
                    raise ConfigError(
                        f"words.{name}.{text}", "said twice, as a text and as a value; keep one of the two"
                    )
                words[name][text] = word
    return {**document, "words": words}


def written(name: str, record: Mapping[str, Any], words: Mapping[str, Mapping[str, str]]) -> str:
    """A field of the record. Raises `RowError` for one that is not there, is no text, or has no word."""
    value = record.get(name)
    if value is None:
        if name in record and "null" in words.get(name, {}):
            return words[name]["null"]
        raise RowError(f"no field {name!r}, which a template reads")
    if isinstance(value, list):
        if not value or not all(isinstance(item, str | int | float) for item in value):
            raise RowError(f"field {name!r}: expected texts in the list", repr(value))
        return "\n".join(f"- {_text(item)}" for item in value)
    if not isinstance(value, str | int | float):
        raise RowError(f"field {name!r}: expected text, a number or a list of them", type(value).__name__)
    if name not in words:
        return _text(value)
    known = words[name]
    for text in _spellings(value):
        if text in known:
            return known[text]
    listed = ", ".join([*list(known)[:_MOST_WORDS], *(["..."] if len(known) > _MOST_WORDS else [])])
    # Whoever wrote yes for a text has true.
    misread = isinstance(value, str) and known.keys() & {"true", "false"}
    hint = " (without quotes, YAML's yes and no are true and false)" if misread else ""
    raise RowError(f"field {name!r}: words has only {listed}{hint}", repr(value))


def _text(value: Any) -> str:
    """A value as JSON writes it, and a text as it is."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _spellings(value: str | int | float) -> list[str]:
    """The keys of `words` that stand for a value: a whole number is the same with and without a point."""
    if isinstance(value, float) and value.is_integer():
        return [str(value), str(int(value))]
    if isinstance(value, int) and not isinstance(value, bool):
        return [str(value), f"{value}.0"]
    return [_text(value)]
