"""What an adapter kind's artifact looks like: its parameters and the tensors that follow from them. No torch.

A kind has two halves: this one, so that a registry can validate without torch, and `weft_adapters.kinds`, which
computes with it. `weft_registry.kinds.KIND_SCHEMAS` lists this half.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, runtime_checkable

from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError
from weft_registry.reference import Reference

ParamsT = TypeVar("ParamsT")

FLOAT_DTYPES = frozenset({"F32", "F16", "BF16"})

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""The tensors of a file: shape by name."""


@dataclass(frozen=True)
class TensorSpec:
    """One expected tensor. A dimension is None where only the base would tell, and the base is not known."""

    shape: tuple[int | None, ...]
    dtypes: frozenset[str] = FLOAT_DTYPES
    wide: bool = False
    """Kept in float32 whatever an engine computes in: a factor of whole outputs must not be rounded to 8 bits."""

    def admits(self, dtype: str, shape: tuple[int, ...]) -> bool:
        """Whether a stored tensor of this safetensors dtype and shape is the expected one."""
        return (
            dtype in self.dtypes
            and len(shape) == len(self.shape)
            and all(want is None or want == have for want, have in zip(self.shape, shape, strict=True))
        )


class KindSchema(Protocol, Generic[ParamsT]):
    """The torch-free half of an adapter kind."""

    name: str

    def parse(self, block: Mapping[str, Any]) -> ParamsT:
        """The parameters from a manifest's `adapter` block. Raises `InvalidInputError` for any unknown, missing or
        impossible key."""
        ...

    def block(self, params: ParamsT) -> dict[str, Any]:
        """The `adapter` block of `params`: the inverse of `parse`."""
        ...

    def tensors(self, params: ParamsT, base: BaseSpec | None) -> dict[str, TensorSpec]:
        """Every tensor the stored form must have, by name. Raises `InvalidInputError` where the parameters cannot
        fit the base (a module it does not have, a group size that does not divide)."""
        ...


@runtime_checkable
class PeftSchema(KindSchema[ParamsT], Protocol[ParamsT]):
    """A kind that PEFT has too: its artifacts hold an adapter_config.json that says the same as the manifest. The
    artifacts of any other kind hold none."""

    def reads_peft(self, config: Mapping[str, Any]) -> bool:
        """Whether an adapter_config.json describes an adapter of this kind."""
        ...

    def from_peft(
        self, config: Mapping[str, Any], shapes: Shapes, base: BaseSpec | None = None, pooling: str = "peft"
    ) -> ParamsT:
        """The parameters of a PEFT adapter with these tensors. Raises `InvalidInputError` naming the key or tensor that
        is refused: whatever would change the result and is not supported. `pooling`: see `peft_format.POOLINGS`."""
        ...

    def to_peft(self, params: ParamsT, base: BaseSpec) -> dict[str, Any]:
        """The kind's own keys of the adapter_config.json that makes PEFT compute the same: the inverse of
        `from_peft`."""
        ...

    def differences(self, declared: ParamsT, found: ParamsT) -> list[str]:
        """Where `found` (in adapter_config.json) would compute something else than `declared` (in the manifest)."""
        ...


@runtime_checkable
class CompositeSchema(KindSchema[ParamsT], Protocol[ParamsT]):
    """A kind that is made over other published adapters, its parts."""

    def parts(self, params: ParamsT) -> tuple[Reference, ...]:
        """The parts, each by name and digest, in the kind's order."""
        ...

    def check_part(self, params: ParamsT, part: Reference, kind: str, block: Mapping[str, Any]) -> None:
        """Raises `InvalidInputError` (`PART_REFUSED`) if an adapter of this kind and with this `adapter` block cannot
        be `part`."""
        ...


class BlockReader:
    """Reads a manifest's `adapter` block key by key, and refuses what nobody read."""

    def __init__(self, block: Mapping[str, Any]) -> None:
        self._left = dict(block)

    def integer(self, key: str, *, least: int = 1, most: int = 1 << 20) -> int:
        """A whole number within bounds."""
        value = self._take(key)
        if type(value) is not int or not least <= value <= most:
            raise InvalidInputError(f"adapter.{key}: expected a whole number from {least} to {most}, found {value!r}")
        return value

    def decimal(self, key: str) -> float:
        """A finite decimal, stored as a string because canonical JSON has no floats."""
        return parse_decimal(self._take(key), f"adapter.{key}")

    def boolean(self, key: str) -> bool:
        """True or false."""
        value = self._take(key)
        if type(value) is not bool:
            raise InvalidInputError(f"adapter.{key}: expected true or false, found {value!r}")
        return value

    def choice(self, key: str, options: tuple[str, ...]) -> str:
        """One of `options`."""
        value = self._take(key)
        if value not in options:
            raise InvalidInputError(f"adapter.{key}: expected one of {', '.join(options)}, found {value!r}")
        return str(value)

    def names(self, key: str, *, least: int = 1) -> tuple[str, ...]:
        """A list of at least so many distinct strings."""
        value = self._take(key)
        if not isinstance(value, list) or len(value) < least or not all(isinstance(v, str) and v for v in value):
            raise InvalidInputError(f"adapter.{key}: expected a {'non-empty ' if least else ''}list of names")
        if len(set(value)) != len(value):
            twice = next(name for name in value if value.count(name) > 1)
            raise InvalidInputError(f"adapter.{key}: {twice[:200]!r} appears twice")
        return tuple(value)

    def integers(self, key: str) -> tuple[int, ...]:
        """A non-empty list of whole numbers, none negative."""
        value = self._take(key)
        if not isinstance(value, list) or not value or not all(type(v) is int and 0 <= v < 1 << 20 for v in value):
            raise InvalidInputError(f"adapter.{key}: expected a non-empty list of whole numbers")
        return tuple(value)

    def mapping(self, key: str) -> dict[str, Any]:
        """An object, possibly empty."""
        value = self._take(key)
        if not isinstance(value, dict):
            raise InvalidInputError(f"adapter.{key}: expected an object, found {value!r}")
        return value

    def end(self) -> None:
        """Raises `InvalidInputError` if a key was not read."""
        if self._left:
            raise InvalidInputError(f"adapter.{min(self._left)}: unknown key")

    def _take(self, key: str) -> Any:
        if key not in self._left:
            raise InvalidInputError(f"adapter.{key}: missing")
        return self._left.pop(key)


def parse_decimal(value: object, field: str) -> float:
    """A finite decimal from its string (or from a whole number). Raises `InvalidInputError` naming `field`."""
    try:
        if type(value) not in (str, int):
            raise ValueError
        number = float(value)  # type: ignore[arg-type]
        if number != number or abs(number) > 1e30:
            raise ValueError
    except ValueError:
        raise InvalidInputError(f'{field}: expected a decimal such as "16" or "0.5", found {value!r}') from None
    return number


def format_decimal(value: float) -> str:
    """The shortest string that parses back to `value`; whole numbers without a point."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))
