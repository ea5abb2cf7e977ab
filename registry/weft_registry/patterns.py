"""PEFT's `rank_pattern` and `alpha_pattern`: regular expressions over module names, evaluated without trusting them.

PEFT (`peft.utils.other.get_pattern_key`) takes the first key that matches the module's name from its start or from
after any dot, to its end: `re.match(rf"(.*\\.)?({key})$", name)`. Python's matcher can be made to run for years, so
only plain expressions are evaluated: no nested or many repeats, no look-around, no back-references, few choices. And
all evaluations of a file together have a budget of steps, since modules and keys multiply.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Set
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any

from weft_registry.errors import InvalidInputError

MAX_PATTERNS = 8192
MAX_EXPRESSIONS = 32
"""How many keys may be more than a name. Real files have a handful."""
MAX_REPEATS = 2
MAX_WAYS = 64
"""The product of an expression's choices: in how many ways it could be read from left to right."""
MAX_KEY_CHARACTERS = 256
MAX_SELECTOR_CHARACTERS = 2048
MAX_SELECTOR_REPEATS = 5
"""In an expression that only PEFT evaluates: each repeat multiplies its time by a name's length."""
MAX_SELECTOR_WAYS = 512
MAX_STEPS = 200_000_000
"""Of all evaluations of one file's patterns: at most some tenths of a second. 882 modules with a key each take 1%."""
_LOOKUP_STEPS = 100
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
_SELECTOR = _PLAIN | {_constants.ASSERT, _constants.ASSERT_NOT}


class ModulePatterns:
    """A `rank_pattern` or `alpha_pattern`, ready to be asked about modules. Owns its budget of steps."""

    def __init__(self, field: str, patterns: Mapping[str, Any]) -> None:
        if len(patterns) > MAX_PATTERNS:
            raise InvalidInputError(f"{field}: {len(patterns)} patterns; at most {MAX_PATTERNS}")
        self._field, self._left = field, MAX_STEPS
        self._keys = [_Key(field, key, value) for key, value in patterns.items()]
        self._expressions = [index for index, key in enumerate(self._keys) if not key.is_name]
        if len(self._expressions) > MAX_EXPRESSIONS:
            raise InvalidInputError(
                f"{field}: more than {MAX_EXPRESSIONS} of its keys are regular expressions; use module names"
            )
        # A key that is a name matches as many characters as it has, its dots any: so names of one length and with the
        # same dots are looked up at once.
        self._names: dict[int, dict[tuple[int, ...], dict[str, list[int]]]] = defaultdict(dict)
        for index, key in enumerate(self._keys):
            if key.is_name:
                dots = tuple(at for at, character in enumerate(key.name) if character == ".")
                self._names[len(key.name)].setdefault(dots, {}).setdefault(key.name, []).append(index)

    def get(self, module: str, default: Any) -> Any:
        """The value of the first key that matches `module`, as PEFT matches, or `default`.

        Raises `InvalidInputError` when all calls together took too many steps.
        """
        starts = [0, *(index + 1 for index, character in enumerate(module) if character == ".")]
        first = len(self._keys)
        for start in starts:
            for dots, names in self._names.get(len(module) - start, {}).items():
                self._spend(_LOOKUP_STEPS)
                for index in names.get(_masked(module[start:], dots), ()):
                    self._spend(_LOOKUP_STEPS)
                    if index < first and self._keys[index].expression.fullmatch(module, start):
                        first = index
        for index in self._expressions:
            if index > first:
                break
            key = self._keys[index]
            self._spend(len(starts) * (_LOOKUP_STEPS + key.ways * len(module) ** key.repeats))
            if any(key.expression.fullmatch(module, start) for start in starts):
                first = index
        return self._keys[first].value if first < len(self._keys) else default

    def _spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise InvalidInputError(
                f"{self._field}: matching its keys against the modules takes too long; write one name for each module"
            )


class _Key:
    def __init__(self, field: str, key: str, value: Any) -> None:
        if not key or len(key) > MAX_KEY_CHARACTERS:
            raise InvalidInputError(f"{field}[{key[:60]!r}]: a key has 1 to {MAX_KEY_CHARACTERS} characters")
        self.value = value
        # "^name" is how Weft itself writes an exact name; the caret leaves only the whole name to match.
        self.name = key.removeprefix("^").replace("\\.", ".")
        self.is_name = _LITERAL.fullmatch(self.name) is not None
        self.repeats, self.ways = (0, 1) if self.is_name else _check_plain(field, key)
        self.expression = re.compile(key)


def _masked(text: str, dots: tuple[int, ...]) -> str:
    """The text with a dot at each of these places."""
    characters = list(text)
    for at in dots:
        characters[at] = "."
    return "".join(characters)


def _check_plain(field: str, key: str) -> tuple[int, int]:
    """How many repeats and ways an expression has. Raises `InvalidInputError` for one that is not evaluated."""
    where = f"{field}[{key[:60]!r}]"
    parsed, repeats, ways = _parsed(where, key, _PLAIN)
    if parsed.state.flags & ~re.UNICODE:
        raise InvalidInputError(f"{where}: a flag is not evaluated; write module names, or a plainer expression")
    if repeats > MAX_REPEATS:
        raise InvalidInputError(f"{where}: more than {MAX_REPEATS} repeats; use module names")
    if ways > MAX_WAYS:
        raise InvalidInputError(f"{where}: more than {MAX_WAYS} ways through its choices; use module names")
    return repeats, ways


def check_selector(field: str, expression: str) -> None:
    """Raises `InvalidInputError` for an expression that could keep PEFT matching for years.

    It selects modules (`target_modules` as a string, and its like): what it selects is not asked here, but whoever
    loads the artifact with PEFT evaluates it against the name of every module.
    """
    if len(expression) > MAX_SELECTOR_CHARACTERS:
        raise InvalidInputError(f"{field}: {len(expression)} characters; at most {MAX_SELECTOR_CHARACTERS}")
    _, repeats, ways = _parsed(field, expression, _SELECTOR)
    if repeats > MAX_SELECTOR_REPEATS or ways > MAX_SELECTOR_WAYS:
        raise InvalidInputError(
            f"{field}: {repeats} repeats one after the other and {ways} ways through its choices; at most "
            f"{MAX_SELECTOR_REPEATS} and {MAX_SELECTOR_WAYS}; use module names"
        )


def _parsed(where: str, expression: str, allowed: Set[Any]) -> tuple[Any, int, int]:
    """The expression, its repeats and its ways. Raises `InvalidInputError` naming `where`."""
    try:
        parsed = _parser.parse(expression)
        return parsed, *_measure(parsed, allowed, nested=False)
    except (re.error, OverflowError, RecursionError) as error:
        raise InvalidInputError(f"{where}: not a regular expression: {error}") from error
    except _NotPlainError as error:
        raise InvalidInputError(f"{where}: {error}; write module names, or a plainer expression") from error


class _NotPlainError(Exception):
    pass


def _measure(parsed: Any, allowed: Set[Any], *, nested: bool) -> tuple[int, int]:
    """How many repeats follow each other in an expression, and the product of its choices.

    Raises `_NotPlainError` for what could take exponential time: a repeat of what can match one text in several ways.
    """
    repeats, ways = 0, 1
    for operation, argument in parsed:
        if operation not in allowed:
            raise _NotPlainError(f"{str(operation).lower()} is not evaluated")
        if operation in (_constants.MAX_REPEAT, _constants.MIN_REPEAT):
            if nested:
                raise _NotPlainError("a repeat inside a repeat is not evaluated")
            # "(...)?" repeats nothing: it is a choice between what is in it and nothing.
            optional = argument[1] == 1
            inner, choices = _measure(argument[2], allowed, nested=not optional)
            repeats += inner + (not optional)
            ways *= choices + optional
        elif operation is _constants.SUBPATTERN:
            inner, choices = _measure(argument[-1], allowed, nested=nested)
            repeats, ways = repeats + inner, ways * choices
        elif operation is _constants.BRANCH:
            if nested:
                raise _NotPlainError("a choice inside a repeat is not evaluated")
            found = [_measure(branch, allowed, nested=False) for branch in argument[1]]
            repeats += max(inner for inner, _ in found)
            ways *= sum(choices for _, choices in found)
        elif operation in (_constants.ASSERT, _constants.ASSERT_NOT):
            inner, choices = _measure(argument[1], allowed, nested=nested)
            repeats, ways = repeats + inner, ways * choices
        ways = min(ways, 1 << 40)
    return repeats, ways
