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
    if not isinstance(values, Mapping):
        raise ConfigError(where, f"expected a mapping, found {values!r}")
    known: dict[str, Field[Any]] = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            near = nearest(str(key), known)
            hint = f"nearest: {', '.join(near)}" if near else f"known: {', '.join(known)}"
            raise ConfigError(_join(where, key), f"unknown key; {hint}", reason="UNKNOWN_KEY")
    hints = typing.get_type_hints(cls)
    found: dict[str, Any] = {}
    for name, field in known.items():
        path = _join(where, name)
        if name in values:
            found[name] = _convert(hints[name], values[name], path)
            _check_bounds(found[name], field.metadata, path)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(path, "missing", reason="MISSING_KEY")
    return cls(**found)


def given(options: object, name: str) -> bool:
    """Whether a setting of a dataclass was given: one that has its default is as good as left out."""
    (default,) = [field.default for field in fields(options) if field.name == name]  # type: ignore[arg-type]
    return bool(getattr(options, name) != default)


def _convert(kind: Any, value: Any, path: str) -> Any:
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
        return {str(key): _convert(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    if kind is Any:
        return value
    if is_dataclass(kind) and isinstance(kind, type):
        return value if isinstance(value, kind) else read(kind, value, path)
    if kind is Path and isinstance(value, str) and value:
        return Path(value).expanduser()
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
    # The type whose reading came furthest is the one that was meant.
    furthest = max(problems, key=lambda problem: len(problem.path))
    if len(problems) == 1 or furthest.path != path:
        raise furthest
    wanted = [problem.problem.removeprefix("expected ").removesuffix(f", found {value!r}") for problem in problems]
    raise ConfigError(path, f"expected {' or '.join(wanted)}, found {value!r}")


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
