"""The computing half of an adapter kind: how adapters of the kind are packed, applied to a batch, and merged.

The other half, `weft_registry.kinds`, says what the artifact is. A kind overrides the hooks of the sites it touches;
every other hook says "nothing to do here". The engine never asks which kind it has.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from weft_adapters.int4 import Int4Weight
from weft_adapters.segments import Segments
from weft_registry.errors import PreconditionError
from weft_registry.kinds.schema import KindSchema

ParamsT = TypeVar("ParamsT")


@dataclass(frozen=True, eq=False)
class Adapter(Generic[ParamsT]):
    """One adapter in memory: every tensor bound to the base, in the engine's dtype and on its device."""

    digest: str
    """The version's digest: the only identity an adapter has in an engine."""
    kind: Kind[ParamsT]
    params: ParamsT
    tensors: Mapping[str, Tensor]
    """The stored form, by name."""
    size_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size_bytes", sum(t.nbytes for t in self.tensors.values()))


@dataclass(frozen=True)
class LinearSite:
    """Linear modules with one input and outputs side by side: (q, k, v), (o,), (gate, up), (down,)."""

    modules: tuple[str, ...]
    """Full names."""
    out_features: tuple[int, ...]
    in_features: int


@dataclass(frozen=True, eq=False)
class LowRankFactors:
    """One adapter's delta at one module as a product of two thin matrices: `y += scaling * B (A x)`."""

    a_rK: Tensor
    """(r, K), or (r, G) where it reads the pooled input."""
    b_Nr: Tensor
    scaling: float
    pooled: bool
    """Whether A reads the sums of the input's quantization groups instead of the input."""


class LinearPack(Protocol):
    """The stacked weights of a batch's adapters of one kind at one linear site."""

    @property
    def size_bytes(self) -> int:
        """Bytes held."""
        ...

    def apply(self, x_TK: Tensor, y_TN: Tensor, segments: Segments) -> None:
        """Adds each row's delta to `y_TN`, in place: `for i: y[rows(i)] += delta_i(x[rows(i)])`."""
        ...


@dataclass(frozen=True)
class KeyValues:
    """Keys and values that stand before a request's own, in every layer; they carry no rotary embedding."""

    key_LHPD: Tensor
    value_LHPD: Tensor

    @property
    def length(self) -> int:
        """Virtual tokens."""
        return self.key_LHPD.shape[2]


class MergeRefusedError(PreconditionError):
    """This adapter cannot become part of the base's weights; the message says why."""

    default_reason = "NOT_MERGEABLE"


class Kind(ABC, Generic[ParamsT]):
    """One adapter kind. Stateless: adapters hold the tensors, packs hold the stacks."""

    schema: KindSchema[ParamsT]
    mergeable: bool = False
    low_rank: bool = False
    """Whether `factors` says everything that adapters of this kind do at linear sites, so that an engine with a
    low-rank operator of its own needs no packs."""

    @property
    def name(self) -> str:
        """The manifest's `kind`."""
        return self.schema.name

    def check(self, adapter: Adapter[ParamsT]) -> None:
        """Raises `InvalidInputError` if the bound numbers cannot be computed with beside others'."""

    def factors(self, adapter: Adapter[ParamsT], module: str) -> LowRankFactors | None:
        """LINEAR site: the adapter's factors at one module, None where it leaves the module alone. Only for kinds that
        are `low_rank`."""
        return None

    def pack(self, adapters: Sequence[Adapter[Any] | None], site: LinearSite) -> LinearPack | None:
        """LINEAR site: stacks the weights of the active adapters there.

        `adapters[i]` is the batch's adapter of index i if it is of this kind, else None. None when no adapter touches
        the site.
        """
        return None

    def key_values(self, adapter: Adapter[ParamsT]) -> KeyValues | None:
        """ATTENTION site: what a request with this adapter finds in its cache before its first token."""
        return None

    def overlay(self, module: str, weight: Int4Weight, adapter: Adapter[ParamsT]) -> Int4Weight | Tensor | None:
        """The merged weight of one module, as a NEW object: an `Int4Weight` where the grid can hold it exactly, else a
        dense float32 (N, K). None where the adapter leaves the module alone.

        Raises `MergeRefusedError` where merging is not possible.
        """
        raise MergeRefusedError(f"an adapter of kind {self.name} cannot be merged")
