"""PEFT's `rank_pattern` and `alpha_pattern`: regular expressions over module names, evaluated without trusting them.

PEFT (`peft.utils.other.get_pattern_key`) takes the first key that matches the module's name from its start or from
after any dot, to its end: `re.match(rf"(.*\\.)?({key})$", name)`. Python's matcher can be made to run for years, so
only plain expressions are evaluated: no nested or many repeats, no look-around, no back-references.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any

from weft_registry.errors import InvalidInputError

MAX_PATTERNS = 8192
MAX_EXPRESSIONS = 32
"""How many keys may be more than a name. Real files have a handful."""
MAX_REPEATS = 2
MAX_KEY_CHARACTERS = 256
_LITERAL = re.compile(r"[A-Za-z0-9_.\-]+")
_PLAIN = {
    _constants.LITERAL,
    _constants.NOT_LITERAL,
    _constants.ANY,
    _constants.IN,
    _constants.AT,
    _constants.BRANCH,
    _constants.SUBPATTERN,
    _constants.MAX_REPEAT,
    _constants.MIN_REPEAT,
}


class ModulePatterns:
    """A `rank_pattern` or `alpha_pattern`, ready to be asked about modules."""

    def __init__(self, field: str, patterns: Mapping[str, Any]) -> None:
        if len(patterns) > MAX_PATTERNS:
            raise InvalidInputError(f"{field}: {len(patterns)} patterns; at most {MAX_PATTERNS}")
        self._keys = [_Key(field, key, value) for key, value in patterns.items()]
        if sum(1 for key in self._keys if not key.is_name) > MAX_EXPRESSIONS:
            raise InvalidInputError(
                f"{field}: more than {MAX_EXPRESSIONS} of its keys are regular expressions; use module names"
            )

    def get(self, module: str, default: Any) -> Any:
        """The value of the first key that matches `module`, as PEFT matches, or `default`."""
        for key in self._keys:
            if key.matches(module):
                return key.value
        return default


class _Key:
    def __init__(self, field: str, key: str, value: Any) -> None:
        if not key or len(key) > MAX_KEY_CHARACTERS:
            raise InvalidInputError(f"{field}[{key[:60]!r}]: a key has 1 to {MAX_KEY_CHARACTERS} characters")
        self.value = value
        # "^name" is how Weft itself writes an exact name; the caret leaves only the whole name to match.
        name = key.removeprefix("^").replace("\\.", ".")
        self.is_name = _LITERAL.fullmatch(name) is not None
        self._tail = name.rpartition(".")[2] if self.is_name else ""
        if not self.is_name:
            _check_plain(field, key)
        self._expression = re.compile(key)

    def matches(self, module: str) -> bool:
        # Most keys are names, and most names differ in their last part: no expression runs for those.
        if not module.endswith(self._tail):
            return False
        starts = [0, *(index + 1 for index, character in enumerate(module) if character == ".")]
        return any(self._expression.fullmatch(module, start) is not None for start in starts)


def _check_plain(field: str, key: str) -> None:
    try:
        parsed = _parser.parse(key)
        if parsed.state.flags & ~re.UNICODE:
            raise _NotPlainError("a flag is not evaluated")
        repeats = _repeats(parsed, nested=False)
    except (re.error, OverflowError, RecursionError) as error:
        raise InvalidInputError(f"{field}[{key[:60]!r}]: not a regular expression: {error}") from error
    except _NotPlainError as error:
        raise InvalidInputError(
            f"{field}[{key[:60]!r}]: {error}; write module names, or a plainer expression"
        ) from error
    if repeats > MAX_REPEATS:
        raise InvalidInputError(f"{field}[{key[:60]!r}]: more than {MAX_REPEATS} repeats; use module names")


class _NotPlainError(Exception):
    pass


def _repeats(parsed: Any, *, nested: bool) -> int:
    """How many repeats an expression has. Raises `_NotPlainError` for what could take exponential time."""
    count = 0
    for operation, argument in parsed:
        if operation not in _PLAIN:
            raise _NotPlainError(f"{str(operation).lower()} is not evaluated")
        if operation in (_constants.MAX_REPEAT, _constants.MIN_REPEAT):
            if nested:
                raise _NotPlainError("a repeat inside a repeat is not evaluated")
            count += 1 + _repeats(argument[2], nested=True)
        elif operation is _constants.SUBPATTERN:
            count += _repeats(argument[-1], nested=nested)
        elif operation is _constants.BRANCH:
            count += sum(_repeats(branch, nested=nested) for branch in argument[1])
    return count
