"""A mapping read into a frozen dataclass, strictly: every key known, every value of its declared type.

Knows nothing of YAML or of training. A field's bounds are in its metadata: `least`, `most`, `above`, `choices`. What is
wrong is a `ConfigError`, which says where, so that whoever read the file can add the line.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from weft_registry.errors import InvalidInputError
from weft_registry.names import nearest

T = TypeVar("T")


class ConfigError(InvalidInputError):
    """Something is wrong at one place of a configuration."""

    def __init__(self, path: str, problem: str, *, reason: str | None = None) -> None:
        super().__init__(f"{path or 'configuration'}: {problem}", reason=reason)
        self.path = path
        """Where: "data.train[0].weight"; empty for the whole."""
        self.problem = problem
        """What, without where."""

    def __reduce__(self) -> tuple[Any, ...]:
        # What a training process raises travels to the one that started it.
        return type(self), (self.path, self.problem), self.__dict__


def read(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """`values` as a `cls`. `where` is the dotted path of the mapping, for messages.

    Raises `ConfigError` for an unknown key (naming the nearest), a missing one, a wrong type or a value out of bounds.
    """
    check_keys(cls, values, where)
    hints = typing.get_type_hints(cls)
    found: dict[str, Any] = {}
    for name, field in _fields(cls).items():
        path = _join(where, name)
        if name in values:
            found[name] = _convert(hints[name], values[name], path)
            _check_bounds(found[name], field.metadata, path)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(path, "missing", reason="MISSING_KEY")
    return cls(**found)


def check_keys(cls: type[Any], values: Mapping[str, Any], where: str = "") -> None:
    """Raises `ConfigError` for a key that a `cls` has not, naming the nearest (`UNKNOWN_KEY`), or that is no text."""
    if not isinstance(values, Mapping):
        raise ConfigError(where, f"expected a mapping, found {values!r}")
    known = _fields(cls)
    for key in values:
        if not isinstance(key, str):
            raise ConfigError(
                _join(where, key), f"expected a key that is text, found {key!r}; known: {', '.join(known)}"
            )
        if key not in known:
            near = nearest(key, known)
            hint = f"nearest: {', '.join(near)}" if near else f"known: {', '.join(known)}"
            raise ConfigError(_join(where, key), f"unknown key; {hint}", reason="UNKNOWN_KEY")


def given(options: object, name: str) -> bool:
    """Whether a setting of a dataclass was given: one that has its default is as good as left out."""
    (default,) = [field.default for field in fields(options) if field.name == name]  # type: ignore[arg-type]
    return bool(getattr(options, name) != default)


def path_of(text: str, path: str) -> Path:
    """A file's path, `~` written out. Raises `ConfigError` for the home of somebody who is not known here."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(path, f"{text}: there is no such home directory; write the whole path") from None


def _fields(cls: type[Any]) -> dict[str, Field[Any]]:
    return {field.name: field for field in fields(cls)}


def _convert(kind: Any, value: Any, path: str) -> Any:
    if isinstance(value, str):
        _check_text(value, path)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, path)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            # One is a list of one.
            return (_convert(arguments[0], value, path),)
        return tuple(_convert(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(path, f"expected a mapping, found {value!r}")
        return {_key(key, path): _convert(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    if kind is Any:
        return value
    if is_dataclass(kind) and isinstance(kind, type):
        return value if isinstance(value, kind) else read(kind, value, path)
    if kind is Path and isinstance(value, str) and value:
        return path_of(value, path)
    if kind is float:
        return _number(value, path)
    if kind in (bool, int, str) and type(value) is kind:
        return value
    raise ConfigError(path, f"expected {_NAMES.get(kind, kind.__name__)}, found {value!r}")


def _convert_union(arguments: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and types.NoneType in arguments:
        return None
    problems: list[ConfigError] = []
    for option in arguments:
        if option is not types.NoneType:
            try:
                return _convert(option, value, path)
            except ConfigError as error:
                problems.append(error)
    for problem in problems:
        # One type was meant, and something else is wrong with the value.
        if not problem.problem.startswith("expected "):
            raise problem
    # The type whose reading came furthest is the one that was meant.
    furthest = max(problems, key=lambda problem: len(problem.path))
    if len(problems) == 1 or furthest.path != path:
        raise furthest
    wanted = [problem.problem.removeprefix("expected ").removesuffix(f", found {value!r}") for problem in problems]
    raise ConfigError(path, f"expected {' or '.join(wanted)}, found {value!r}")


def _key(key: Any, path: str) -> str:
    # A number is what it says; of the others YAML's spelling is lost: "yes" is True, and "~" is None.
    if isinstance(key, bool) or not isinstance(key, str | int | float):
        raise ConfigError(f"{path}.{key}", f"expected a key that is text, found {key!r}; put it into quotes")
    _check_text(str(key), path)
    return str(key)


def _check_text(text: str, path: str) -> None:
    """Raises `ConfigError` for what no file name can hold, nor any other file."""
    if "\0" in text:
        raise ConfigError(path, f"{text!r} holds a null character; take it out")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])[1:-1]
        raise ConfigError(path, f"{half} is half of a character, without its other half; take it out") from None


def _number(value: Any, path: str) -> float:
    # YAML 1.1 reads 1e-4 (no point) as a string; everybody who writes it means the number.
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = float("nan")
        if number == number and abs(number) != float("inf"):
            return number
    raise ConfigError(path, f"expected a number, found {value!r}")


def _check_bounds(value: Any, bounds: Mapping[str, Any], path: str) -> None:
    if value is None:
        return
    if "choices" in bounds and value not in bounds["choices"]:
        near = nearest(str(value), bounds["choices"])
        hint = f"; nearest: {near[0]}" if near else ""
        raise ConfigError(path, f"{value!r} is not one of {', '.join(bounds['choices'])}{hint}")
    if "least" in bounds and value < bounds["least"]:
        raise ConfigError(path, f"{value}, but at least {bounds['least']}")
    if "above" in bounds and value <= bounds["above"]:
        raise ConfigError(path, f"{value}, but it must be above {bounds['above']}")
    if "most" in bounds and value > bounds["most"]:
        raise ConfigError(path, f"{value}, but at most {bounds['most']}")


_NAMES = {bool: "true or false", int: "a whole number", str: "text", Path: "a path"}


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)
