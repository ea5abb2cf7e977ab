"""The artifact of an AdapterFusion: an attention over the outputs of trained bottleneck adapters, its parts.

Source: Pfeiffer et al. 2021 (arXiv:2005.00247), section 3.2, as the AdapterHub library computes it on a Llama. At each
sublayer, with z what the parts read and u_i = s_i (U_i f_i(D_i z + b_D) + b_U) what part i would add:

    y <- y + V sum_i p_i u_i      p = softmax_i( (Q z + b_Q) . (K u_i + b_K) )

The artifact holds Q, K and V. The parts stay artifacts of their own and are named by reference AND digest, so that what
they are can never change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError
from weft_registry.kinds.bottleneck import (
    READS,
    BottleneckParams,
    BottleneckSchema,
    check_layers,
    read_layers,
    read_places,
    sublayer_prefix,
)
from weft_registry.kinds.schema import BlockReader, TensorSpec
from weft_registry.reference import Reference

MAX_PARTS = 64


@dataclass(frozen=True)
class FusionParams:
    """Which adapters are fused, and where they stand: every part stands at the same sublayers and reads the same."""

    parts: tuple[Reference, ...]
    """Each with a digest, in the order of the attention's keys."""
    reads: str
    places: tuple[str, ...]
    layers: tuple[int, ...]
    value: bool
    """Whether there is a V; without one it is the identity."""


class FusionSchema:
    """`query` and `key` are (E, E) with a bias (E,), `value` is (E, E), at every sublayer of the parts."""

    name = "fusion"

    def parse(self, block: Mapping[str, Any]) -> FusionParams:
        """See `KindSchema.parse`."""
        reader = BlockReader(block)
        params = FusionParams(
            parts=tuple(_part(text) for text in reader.names("parts")),
            reads=reader.choice("reads", READS),
            places=read_places(reader),
            layers=read_layers(reader),
            value=reader.boolean("value"),
        )
        reader.end()
        if len(params.parts) > MAX_PARTS:
            raise InvalidInputError(f"adapter.parts: {len(params.parts)}; at most {MAX_PARTS}")
        if len({part.digest for part in params.parts}) != len(params.parts):
            raise InvalidInputError("adapter.parts: one version appears twice")
        return params

    def block(self, params: FusionParams) -> dict[str, Any]:
        """See `KindSchema.block`."""
        return {
            **vars(params),
            "parts": [str(part) for part in params.parts],
            "places": list(params.places),
            "layers": list(params.layers),
        }

    def tensors(self, params: FusionParams, base: BaseSpec | None) -> dict[str, TensorSpec]:
        """See `KindSchema.tensors`."""
        check_layers(params.layers, base)
        hidden = None if base is None else base.hidden_size
        specs: dict[str, TensorSpec] = {}
        for layer in params.layers:
            for place in params.places:
                at = sublayer_prefix(layer, place)
                for name in ("query", "key"):
                    specs[f"{at}{name}.weight"] = TensorSpec((hidden, hidden))
                    specs[f"{at}{name}.bias"] = TensorSpec((hidden,))
                if params.value:
                    specs[f"{at}value.weight"] = TensorSpec((hidden, hidden))
        return specs

    def parts(self, params: FusionParams) -> tuple[Reference, ...]:
        """See `CompositeSchema.parts`."""
        return params.parts

    def check_part(self, params: FusionParams, part: Reference, kind: str, block: Mapping[str, Any]) -> None:
        """See `CompositeSchema.check_part`."""
        if kind != BottleneckSchema.name:
            raise InvalidInputError(
                f"{part} is an adapter of the kind {kind}: a fusion is made over {BottleneckSchema.name} adapters",
                reason="PART_REFUSED",
            )
        check_alike(params, part, BottleneckSchema().parse(block))


def check_alike(params: FusionParams, part: Reference | str, found: BottleneckParams) -> None:
    """Raises `InvalidInputError` unless a part stands where the fusion says, and reads what it says."""
    for field in ("reads", "places", "layers"):
        have, want = getattr(found, field), getattr(params, field)
        if have != want:
            raise InvalidInputError(
                f"{part}: its {field} are {have}, the fusion's {want}: all parts of a fusion stand at the same "
                "sublayers and read the same",
                reason="PART_REFUSED",
                metadata={"part": str(part), "field": field},
            )


def _part(text: str) -> Reference:
    reference = Reference.parse(text)
    if reference.digest is None or reference.label is not None:
        raise InvalidInputError(f"adapter.parts: {text[:200]!r}; expected NAMESPACE/NAME@sha256:... without a tag")
    return reference
