"""The artifact of a bottleneck adapter: a small network after attention, after the MLP, or both.

At each of its sublayers it has a down-projection D (d, E), a non-linearity f and an up-projection U (E, d), with
biases:

    y <- y + s (U f(D z + b_D) + b_U)

y is the sublayer's output before the residual is added, z what `reads` says. By its choices this is the adapter of
Houlsby et al. 2019 (arXiv:1902.00751), of Pfeiffer et al. 2020 (arXiv:2005.00052) or the parallel one of He et al.
2022 (arXiv:2110.04366), each as the AdapterHub library computes it on a Llama. PEFT has no such kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError
from weft_registry.kinds.schema import BlockReader, TensorSpec, format_decimal

PLACES = ("attention", "mlp")
"""The sublayers, in order of use."""
READS = ("output", "sum", "residual", "input")
"""What D reads: `output` the sublayer's output y (Houlsby); `sum` y plus the residual stream before the sublayer, that
is, what the stream becomes (Pfeiffer); `residual` the residual stream before the sublayer (parallel); `input` the same
after the sublayer's norm: what the sublayer itself reads (parallel)."""
NON_LINEARITIES = ("relu", "gelu", "gelu_new", "silu", "swish", "tanh", "leakyrelu")
"""AdapterHub's names: `gelu` is exact, `gelu_new` its tanh approximation, `swish` another name of `silu`."""
MAX_SIZE = 1 << 14


@dataclass(frozen=True)
class BottleneckParams:
    """One shape at every sublayer that it has."""

    bottleneck_size: int
    """d: the hidden size divided by what the papers call the reduction factor."""
    non_linearity: str
    reads: str
    places: tuple[str, ...]
    layers: tuple[int, ...]
    """The layers that have it, ascending."""
    scaling: float
    """s."""

    def has(self, layer: int, place: str) -> bool:
        """Whether it stands at the end of this sublayer."""
        return layer in self.layers and place in self.places


class BottleneckSchema:
    """`adapter_down` is (d, E) with a bias (d,), `adapter_up` is (E, d) with a bias (E,), at every sublayer."""

    name = "bottleneck"

    def parse(self, block: Mapping[str, Any]) -> BottleneckParams:
        """See `KindSchema.parse`."""
        reader = BlockReader(block)
        params = BottleneckParams(
            bottleneck_size=reader.integer("bottleneck_size", most=MAX_SIZE),
            non_linearity=reader.choice("non_linearity", NON_LINEARITIES),
            reads=reader.choice("reads", READS),
            places=read_places(reader),
            layers=read_layers(reader),
            scaling=reader.decimal("scaling"),
        )
        reader.end()
        return params

    def block(self, params: BottleneckParams) -> dict[str, Any]:
        """See `KindSchema.block`."""
        return {
            **vars(params),
            "places": list(params.places),
            "layers": list(params.layers),
            "scaling": format_decimal(params.scaling),
        }

    def tensors(self, params: BottleneckParams, base: BaseSpec | None) -> dict[str, TensorSpec]:
        """See `KindSchema.tensors`."""
        check_layers(params.layers, base)
        size, hidden = params.bottleneck_size, None if base is None else base.hidden_size
        specs: dict[str, TensorSpec] = {}
        for layer in params.layers:
            for place in params.places:
                at = sublayer_prefix(layer, place)
                specs[f"{at}adapter_down.weight"] = TensorSpec((size, hidden))
                specs[f"{at}adapter_down.bias"] = TensorSpec((size,))
                specs[f"{at}adapter_up.weight"] = TensorSpec((hidden, size))
                specs[f"{at}adapter_up.bias"] = TensorSpec((hidden,))
        return specs


def sublayer_prefix(layer: int, place: str) -> str:
    """What the names of a sublayer's tensors begin with."""
    return f"model.layers.{layer}.{place}."


def read_places(reader: BlockReader) -> tuple[str, ...]:
    """The key `places`: some of `PLACES`, in their order. Raises `InvalidInputError`."""
    places = reader.names("places")
    if places != tuple(place for place in PLACES if place in places):
        raise InvalidInputError(f"adapter.places: expected some of {', '.join(PLACES)} in this order, found {places}")
    return places


def read_layers(reader: BlockReader) -> tuple[int, ...]:
    """The key `layers`: ascending indices. Raises `InvalidInputError`."""
    layers = reader.integers("layers")
    if list(layers) != sorted(set(layers)):
        raise InvalidInputError("adapter.layers: expected each layer once, ascending")
    return layers


def check_layers(layers: tuple[int, ...], base: BaseSpec | None) -> None:
    """Raises `InvalidInputError` for a layer that the base does not have."""
    if base is not None and layers[-1] >= base.num_layers:
        raise InvalidInputError(
            f"adapter.layers: no layer {layers[-1]}; the base {base.fingerprint.id} has 0 to {base.num_layers - 1}"
        )
