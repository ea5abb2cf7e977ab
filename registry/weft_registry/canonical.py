"""Canonical JSON: one byte string for one value, so that a digest over it means something.

Keys sorted, no white space, UTF-8 without escapes, no floats (their text differs between writers: a decimal that
matters is stored as a string), no integers beyond 64 bits (many readers round them), no duplicate keys.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, TypeAlias

from weft_registry.errors import InvalidInputError

Json: TypeAlias = "bool | int | str | Sequence[Json] | Mapping[str, Json] | None"

MAX_DEPTH = 32
# A parsed list takes some twenty times the bytes that it is written in. What Weft reads has a few of these a tensor.
MAX_CONTAINERS = 1 << 18
MAX_COMMAS = 1 << 20
MIN_INTEGER, MAX_INTEGER = -(1 << 63), (1 << 64) - 1
_PLAIN = {dict, list, str, int, bool, type(None)}


def dumps(value: Json) -> bytes:
    """The canonical bytes of `value`. Raises `InvalidInputError` for a float, an integer beyond 64 bits, a non-string
    key or deep nesting."""
    _check(value, "", 0)
    return written(value)


def written(value: Json) -> bytes:
    """The canonical bytes of what `loads` returned, which needs no second look."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def loads(data: bytes, what: str) -> dict[str, Any]:
    """Parses one JSON object, strictly. `what` names the document in errors.

    Raises `InvalidInputError` for bytes that are not UTF-8 JSON, duplicate keys, floats, integers beyond 64 bits, deep
    nesting, or a document that is not an object.
    """

    def no_float(text: str) -> Any:
        raise InvalidInputError(f"{what}: the number {text[:40]} is not an integer; decimals are stored as strings")

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise InvalidInputError(f"{what}: the key {twice[:100]!r} appears twice")
        return result

    if data.count(b"[") + data.count(b"{") > MAX_CONTAINERS or data.count(b",") > MAX_COMMAS:
        raise InvalidInputError(f"{what}: more than {MAX_CONTAINERS} lists and objects, or {MAX_COMMAS} commas")
    try:
        value = json.loads(
            data.decode("utf-8"), parse_float=no_float, parse_constant=no_float, object_pairs_hook=no_duplicates
        )
    except (UnicodeDecodeError, ValueError) as error:
        raise InvalidInputError(f"{what}: not UTF-8 JSON: {error}") from error
    except RecursionError as error:
        raise InvalidInputError(f"{what}: nested too deeply") from error
    if not isinstance(value, dict):
        raise InvalidInputError(f"{what}: the document is a {type(value).__name__}, not an object")
    _check(value, what, 0)
    return value


def _check(value: Any, path: str, depth: int) -> None:
    # A manifest has thousands of values, and is read while a server answers.
    if not _is_plain(value):
        _check_each(value, path, depth)


def _is_plain(value: Any) -> bool:
    """Whether nothing is wrong with `value`, seen level by level. False where only a closer look can tell."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        if not _PLAIN.issuperset(map(type, level)):
            return False
        objects = [item for item in level if type(item) is dict]
        keys = list(chain.from_iterable(objects))
        if not {str}.issuperset(map(type, keys)):
            return False
        try:
            "".join(keys).encode()
            "".join([item for item in level if type(item) is str]).encode()
        except UnicodeEncodeError:
            return False
        numbers = [item for item in level if type(item) is int]
        if numbers and not MIN_INTEGER <= min(numbers) <= max(numbers) <= MAX_INTEGER:
            return False
        lists = [item for item in level if type(item) is list]
        level = [*chain.from_iterable(map(dict.values, objects)), *chain.from_iterable(lists)]
        if not level:
            return True
    return False


def _check_each(value: Any, path: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise InvalidInputError(f"{path[:80]}: nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, float):
        raise InvalidInputError(f"{path}: {value!r} is a float; decimals are stored as strings")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidInputError(f"{path}: the key {key!r} is not a string")
            _check_each(key, f"{path}.{key!r}", depth)
            _check_each(item, f"{path}.{key}", depth + 1)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_each(item, f"{path}[{index}]", depth + 1)
    elif isinstance(value, str):
        # JSON can spell half of a surrogate pair, which has no bytes in UTF-8.
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise InvalidInputError(f"{path}: a string with half of a surrogate pair")
    elif isinstance(value, int):
        if not MIN_INTEGER <= value <= MAX_INTEGER:
            raise InvalidInputError(f"{path[:200]}: an integer of more than 64 bits; store it as a string")
    elif value is not None:
        raise InvalidInputError(f"{path}: {type(value).__name__} has no place in canonical JSON")
