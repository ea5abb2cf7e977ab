"""A mapping read into a frozen dataclass, strictly: every key known, every value of its declared type.

Knows nothing of YAML or of training. A field's bounds are in its metadata: `least`, `most`, `above`, `choices`.
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


def read(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """`values` as a `cls`. `where` is the dotted path of the mapping, for messages.

    Raises `InvalidInputError` for an unknown key (naming the nearest), a missing one, a wrong type or a value out of
    bounds.
    """
    if not isinstance(values, Mapping):
        raise InvalidInputError(f"{where or 'configuration'}: expected a mapping, found {values!r}")
    known: dict[str, Field[Any]] = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            near = nearest(str(key), known)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise InvalidInputError(f"{_join(where, key)}: unknown key; {hint}", reason="UNKNOWN_KEY")
    hints = typing.get_type_hints(cls)
    found: dict[str, Any] = {}
    for name, field in known.items():
        path = _join(where, name)
        if name in values:
            found[name] = _convert(hints[name], values[name], path)
            _check_bounds(found[name], field.metadata, path)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise InvalidInputError(f"{path}: missing", reason="MISSING_KEY")
    return cls(**found)


def _convert(kind: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, path)
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_convert(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(items))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise InvalidInputError(f"{path}: expected a mapping, found {value!r}")
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
    raise InvalidInputError(f"{path}: expected {_NAMES.get(kind, kind.__name__)}, found {value!r}")


def _convert_union(arguments: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and types.NoneType in arguments:
        return None
    problems: list[str] = []
    for option in arguments:
        if option is not types.NoneType:
            try:
                return _convert(option, value, path)
            except InvalidInputError as error:
                problems.append(error.message)
    raise InvalidInputError(problems[-1] if len(problems) == 1 else f"{path}: {value!r} is of no type it may have")


def _number(value: Any, path: str) -> float:
    # YAML 1.1 reads 1e-4 (no point) as a string; everybody who writes it means the number.
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if number == number and abs(number) != float("inf"):
            return number
    raise InvalidInputError(f"{path}: expected a number, found {value!r}")


def _check_bounds(value: Any, bounds: Mapping[str, Any], path: str) -> None:
    if value is None:
        return
    if "choices" in bounds and value not in bounds["choices"]:
        near = nearest(str(value), bounds["choices"])
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InvalidInputError(f"{path}: {value!r} is not one of {', '.join(bounds['choices'])}{hint}")
    if "least" in bounds and value < bounds["least"]:
        raise InvalidInputError(f"{path}: {value}, but at least {bounds['least']}")
    if "above" in bounds and value <= bounds["above"]:
        raise InvalidInputError(f"{path}: {value}, but it must be above {bounds['above']}")
    if "most" in bounds and value > bounds["most"]:
        raise InvalidInputError(f"{path}: {value}, but at most {bounds['most']}")


_NAMES = {bool: "true or false", int: "a whole number", str: "text", Path: "a path"}


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)
