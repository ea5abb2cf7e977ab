"""A base model as the registry knows it: its fingerprint, its dimensions, and where it is stored. No weights here.

A stored base is a directory WEFT_HOME/bases/NAME with `base.json` (a `BaseSpec`), `model.safetensors`, `config.json`
and the tokenizer's files. `weft_adapters.base` writes and reads the weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weft_registry.errors import InvalidInputError, NotFoundError, PreconditionError
from weft_registry.names import nearest
from weft_registry.reference import check_name


@dataclass(frozen=True)
class QuantSpec:
    """How the linear weights are quantized: `w[n,k] = scale[n,k//g] * code[n,k] + minimum[n,k//g]`."""

    method: str
    """"groupwise-affine" for the formula above."""
    bits: int
    group_size: int
    symmetric: bool
    zero_point: str
    """"float" when the minimum is a float per group, "int" when it is a code."""
    scales_sha256: str
    """Digest over the scale and minimum tensors, in name order."""


@dataclass(frozen=True)
class BaseFingerprint:
    """The manifest's `base` block: which model, and exactly which weights."""

    id: str
    revision: str
    weights_sha256: str
    """Digest of the sorted table of (name, dtype, shape, sha256) of every stored tensor: the identity of the base."""
    config_sha256: str
    arch: str
    quant: QuantSpec

    def as_json(self) -> dict[str, Any]:
        """The manifest's `base` block."""
        return asdict(self)

    def check_is(self, wanted: BaseFingerprint, what: str, here: str, way_out: str) -> None:
        """Raises `PreconditionError` (`BASE_MISMATCH`), with both fingerprints, unless this is the base `wanted`.

        `what` was made for this one, and `here` says whose the other is.
        """
        if self.weights_sha256 != wanted.weights_sha256:
            raise PreconditionError(
                f"{what} was made for the base {self._beside(wanted)} with weights {self.weights_sha256}, but {here} "
                f"is {wanted._beside(self)} with weights {wanted.weights_sha256}: {way_out}",
                reason="BASE_MISMATCH",
                metadata={"made_for": self.weights_sha256, "base": wanted.weights_sha256},
            )

    def _beside(self, other: BaseFingerprint) -> str:
        """Its name, and how it is quantized where only that tells it from the other."""
        ours, theirs = ((each.quant.bits, each.quant.group_size) for each in (self, other))
        if self.id != other.id or ours == theirs:
            return self.id
        return f"{self.id} in {self.quant.bits} bits and groups of {self.quant.group_size}"

    @classmethod
    def from_json(cls, block: Mapping[str, Any], what: str = "base") -> BaseFingerprint:
        """Parses a `base` block. Raises `InvalidInputError` naming the missing, unknown or mistyped key."""
        quant = block.get("quant")
        if not isinstance(quant, Mapping):
            raise InvalidInputError(f"{what}.quant: expected an object")
        return cls(
            quant=_typed(QuantSpec, quant, f"{what}.quant"),
            **_fields(cls, {k: v for k, v in block.items() if k != "quant"}, what, skip=("quant",)),
        )


@dataclass(frozen=True)
class BaseSpec:
    """A stored base model's dimensions: what an adapter's tensors are checked against."""

    fingerprint: BaseFingerprint
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    linears: Mapping[str, tuple[int, int]]
    """Adaptable linear modules in model order, by full name without ".weight": (out_features, in_features)."""

    def as_json(self) -> dict[str, Any]:
        """The content of base.json."""
        return {
            **{k: getattr(self, k) for k in _DIMENSIONS},
            "fingerprint": self.fingerprint.as_json(),
            "linears": {name: list(shape) for name, shape in self.linears.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BaseSpec:
        """Parses base.json. Raises `InvalidInputError`."""
        try:
            return cls(
                fingerprint=BaseFingerprint.from_json(data["fingerprint"], "fingerprint"),
                linears={name: (int(shape[0]), int(shape[1])) for name, shape in data["linears"].items()},
                **{k: int(data[k]) for k in _DIMENSIONS},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidInputError(f"base.json: {error!r}") from error


_DIMENSIONS = ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "vocab_size", "context_length")


class BaseStore:
    """The base models under one directory. Owns the names; a base is immutable once it is there."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, name: str) -> Path:
        """The directory of base `name`, whether or not it exists."""
        return self._root / check_name(name, "base name")

    def names(self) -> list[str]:
        """The stored bases, sorted."""
        if not self._root.is_dir():
            return []
        return sorted(p.name for p in self._root.iterdir() if (p / "base.json").is_file())

    def get(self, name: str) -> BaseSpec:
        """The spec of base `name`. Raises `NotFoundError` naming the ones there are."""
        path = self.path(name) / "base.json"
        try:
            return BaseSpec.from_json(json.loads(path.read_text()))
        except FileNotFoundError:
            known = ", ".join(self.names()) or "none"
            raise NotFoundError(
                f"no base model {name!r}; there are: {known}. Add one with `weft base add {name} SOURCE`",
                reason="BASE_NOT_FOUND",
                metadata={"base": name, "nearest": ",".join(nearest(name, self.names()))},
            ) from None
        except ValueError as error:
            raise InvalidInputError(f"{path.name} of base {name!r} is damaged ({error}); add the base again") from error

    def by_weights(self, weights_sha256: str) -> tuple[str, BaseSpec] | None:
        """The stored base with this fingerprint, if there is one."""
        for name in self.names():
            spec = self.get(name)
            if spec.fingerprint.weights_sha256 == weights_sha256:
                return name, spec
        return None


def _typed(cls: type[Any], block: Mapping[str, Any], what: str) -> Any:
    return cls(**_fields(cls, block, what))


def _fields(cls: type[Any], block: Mapping[str, Any], what: str, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    expected: dict[str, str] = {k: v for k, v in cls.__annotations__.items() if k not in skip}
    for key in block:
        if key not in expected:
            raise InvalidInputError(f"{what}.{key}: unknown key; expected {', '.join(expected)}")
    for key, kind in expected.items():
        if key not in block:
            raise InvalidInputError(f"{what}.{key}: missing")
        if type(block[key]).__name__ != kind:
            raise InvalidInputError(f"{what}.{key}: expected {kind}, found {type(block[key]).__name__}")
    return dict(block)
