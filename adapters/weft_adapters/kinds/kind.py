"""The computing half of an adapter kind: how adapters of the kind are packed, applied to a batch, and merged.

The other half, `weft_registry.kinds`, says what the artifact is. A kind overrides the hooks of the sites it touches;
every other hook says "nothing to do here". The engine never asks which kind it has.

Most hooks say what ONE adapter has at a site (`soft_prompt`, `input_scale`, `factors`, `output_scale`, `key_values`);
the engine batches it. Where a kind's mathematics is its own, the kind batches it (`pack`, `sublayer_pack`).

Legend for tensor names: T rows (tokens), E hidden size, K inputs, N outputs, r rank, P virtual tokens, L layers, H
key-value heads, D head size.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

from torch import Tensor

from weft_adapters.int4 import Int4Weight
from weft_adapters.segments import Segments
from weft_registry.errors import PreconditionError, UnsupportedError
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
    """The stored form, by name, and whatever `Kind.prepare` adds to it or puts in its place."""
    parts: tuple[Adapter[Any], ...] = ()
    """The adapters that this one is made over (a fusion's), in its own order."""
    size_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        own = sum(tensor.nbytes for tensor in self.tensors.values())
        object.__setattr__(self, "size_bytes", own + sum(part.size_bytes for part in self.parts))


class BaseWeights(Protocol):
    """The stored weights of a base's linear modules."""

    def int4(self, module: str) -> Int4Weight:
        """The weight of one module."""
        ...

    def bias(self, module: str) -> Tensor | None:
        """Its bias (N,), if it has one."""
        ...


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


@dataclass(frozen=True, eq=False)
class OutputScale:
    """What one adapter does to the output of one module, bias and delta included: `y <- scale * y + shift`."""

    scale_N: Tensor
    shift_N: Tensor | None = None


@dataclass(frozen=True)
class SublayerSite:
    """The end of a sublayer: its output, just before it is added to the residual stream."""

    layer: int
    place: Literal["attention", "mlp"]
    hidden: int


class SublayerPack(Protocol):
    """The weights of a batch's adapters of one kind at the end of one sublayer."""

    @property
    def size_bytes(self) -> int:
        """Bytes held."""
        ...

    def apply(self, input_TE: Tensor, residual_TE: Tensor, y_TE: Tensor, segments: Segments) -> None:
        """Changes each row of `y_TE` as its adapter does, in place: `for i: y[rows(i)] = f_i(input, residual, y)`.

        `input_TE` is what went into the sublayer, after its norm; `residual_TE` the residual stream before the
        sublayer; `y_TE` the sublayer's output with all linear deltas in it. The last two may be float32 in an engine
        that computes in bfloat16.
        """
        ...


class LinearPack(Protocol):
    """The stacked weights of a batch's adapters of one kind at one linear site."""

    @property
    def size_bytes(self) -> int:
        """Bytes held."""
        ...

    def apply(self, x_TK: Tensor, y_TN: Tensor, segments: Segments) -> None:
        """Adds each row's delta to `y_TN`, in place: `for i: y[rows(i)] += delta_i(x[rows(i)])`.

        `y_TN` may be float32 in an engine that computes in bfloat16.
        """
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
    """Whether `factors` is the whole delta of this kind at linear sites, so that an engine with a low-rank operator of
    its own needs no `pack`. Scales come besides."""
    scales: bool = False
    """Whether adapters of this kind may have an `input_scale` or an `output_scale`."""

    @property
    def name(self) -> str:
        """The manifest's `kind`."""
        return self.schema.name

    def check(self, adapter: Adapter[ParamsT]) -> None:
        """Raises `InvalidInputError` if the bound numbers cannot be computed with beside others'."""

    def prepare(self, adapter: Adapter[ParamsT], base: BaseWeights) -> Adapter[ParamsT]:
        """The same adapter with what can be computed ahead among its tensors, from the base's weights too, or in the
        place of stored ones that are then needed no more; called once, when an engine binds it.

        A tensor that is added has a name that no stored tensor can have. Together they take no more than the stored
        form says, apart from vectors: it is what an engine makes room for.
        """
        return adapter

    def soft_prompt(self, adapter: Adapter[ParamsT]) -> Tensor | None:
        """EMBEDDING site: (P, E), the embeddings of virtual tokens before the request's own. They are computed like
        text, at positions 0 to P - 1."""
        return None

    def input_scale(self, adapter: Adapter[ParamsT], module: str) -> Tensor | None:
        """LINEAR site: (K,), what the input of a module is multiplied by. Only for modules that have their input to
        themselves: `LinearSite.modules` of length 1."""
        return None

    def factors(self, adapter: Adapter[ParamsT], module: str) -> LowRankFactors | None:
        """LINEAR site: the adapter's factors at one module, None where it leaves the module alone. Only for kinds that
        are `low_rank`."""
        return None

    def output_scale(self, adapter: Adapter[ParamsT], module: str) -> OutputScale | None:
        """LINEAR site: what is done to the output of a module, after its bias and every delta."""
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

    def sublayer_pack(self, adapters: Sequence[Adapter[Any] | None], site: SublayerSite) -> SublayerPack | None:
        """SUBLAYER site: the weights of the active adapters there; indices as in `pack`."""
        return None

    def compose(self, parts: Sequence[tuple[Adapter[Any], float]], digest: str) -> Adapter[Any]:
        """One adapter that does what `parts`, the first of this kind, do together, each with its weight, under an
        identity that says which they are. Raises `UnsupportedError` where there is no such thing."""
        raise UnsupportedError(
            f"{parts[0][0].digest} is of kind {self.name}, which is worn alone, and with no weight; lora, qalora and "
            "dora adapters can be summed, and bottleneck adapters stacked",
            reason="NOT_COMPOSABLE",
        )

    def overlay(self, module: str, weight: Int4Weight, adapter: Adapter[ParamsT]) -> Int4Weight | Tensor | None:
        """The merged weight of one module, as a NEW object: an `Int4Weight` with the same codes where
        those can say it exactly, else a dense float32 (N, K). None where the adapter leaves the module alone.

        Raises `MergeRefusedError` where merging is not possible.
        """
        raise MergeRefusedError(f"an adapter of kind {self.name} cannot be merged")

    def overlay_bias(self, module: str, bias_N: Tensor, adapter: Adapter[ParamsT]) -> Tensor:
        """The bias that goes with the merged weight of a module that has one."""
        return bias_N
