"""Bottleneck adapters: `y <- y + s (U f(D z + d) + u)` at the end of sublayers, before the residual is added.

One kind, three methods, which differ in where the adapter stands, what it reads and how it starts: `houlsby`
(arXiv:1902.00751, section 2), `pfeiffer` (arXiv:2005.00052, section 3) and `parallel` (arXiv:2110.04366, section 3).
Own code: PEFT has no such kind.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

from torch import Tensor, nn
from torch.nn import functional as F

from weft_adapters.kinds.bottleneck_network import NON_LINEARITIES, read
from weft_registry.base import BaseSpec
from weft_registry.kinds.bottleneck import MAX_SIZE, PLACES, BottleneckParams
from weft_trainer.config.adapter import BottleneckOptions
from weft_trainer.config.strict import ConfigError
from weft_trainer.data.tokenization import TextEncoder
from weft_trainer.methods import targets
from weft_trainer.methods.parts import STACKED_ON, Part
from weft_trainer.modeling.adapted import AdaptedModel, Outcome
from weft_trainer.modeling.base import TrainingBase
from weft_trainer.modeling.sublayers import SublayerModel, lay_frozen


class BottleneckMethod(ABC):
    """What the three methods share. Its parts are the adapters that lie below the one that is trained."""

    name: str
    kind = "bottleneck"
    places: tuple[str, ...]
    reads: str
    non_linearity: str
    reduction_factor: float
    scaling: float

    def __init__(self, below: Sequence[Part] = ()) -> None:
        self._below = tuple(below)

    def over(self, parts: Sequence[Part]) -> Self:
        """See `CompositeMethod.over`."""
        return type(self)(parts)

    @abstractmethod
    def start(self, down: nn.Linear, up: nn.Linear) -> None:
        """Gives a down- and an up-projection their first values; their biases are zero already."""

    def params(self, options: BottleneckOptions, base: BaseSpec, encoder: TextEncoder) -> BottleneckParams:
        """See `Method.params`: the options, and the method's own choice where they say nothing."""
        layers = _layers(options, base.num_layers)
        factor = options.reduction_factor or self.reduction_factor
        size = options.bottleneck_size or max(1, int(base.hidden_size // factor))
        if size > MAX_SIZE:
            raise ConfigError(
                "adapter.reduction_factor",
                f"{factor:g} makes bottlenecks of {size} of a hidden size of {base.hidden_size}; at most {MAX_SIZE}",
            )
        chosen = options.places or self.places
        return BottleneckParams(
            bottleneck_size=size,
            non_linearity=options.non_linearity or self.non_linearity,
            reads=options.reads or self.reads,
            places=tuple(place for place in PLACES if place in chosen),
            layers=layers,
            scaling=self.scaling if options.scaling is None else options.scaling,
        )

    def first_layer(self, params: BottleneckParams) -> int:
        """See `Method.first_layer`."""
        lowest: list[int] = [params.layers[0], *(part.adapter.params.layers[0] for part in self._below)]
        return min(lowest)

    def attach(
        self, base: TrainingBase, params: BottleneckParams, options: BottleneckOptions, encoder: TextEncoder
    ) -> AdaptedModel:
        """At or near the base itself, as the method's paper starts."""
        model = BottleneckModel(base, params, options.dropout, self._below)
        for one in model.networks.values():
            assert isinstance(one, BottleneckNetwork)
            self.start(one.adapter_down, one.adapter_up)
        return model

    def bare(self, base: TrainingBase, params: BottleneckParams) -> AdaptedModel:
        """See `Method.bare`."""
        return BottleneckModel(base, params, 0.0, self._below)


class HoulsbyMethod(BottleneckMethod):
    """`method: houlsby`."""

    name = "houlsby"
    places, reads = ("attention", "mlp"), "output"
    non_linearity, reduction_factor, scaling = "swish", 16.0, 1.0

    def start(self, down: nn.Linear, up: nn.Linear) -> None:
        """Near the identity: both normal with a deviation of 0.01, cut off at two deviations."""
        for linear in (down, up):
            nn.init.trunc_normal_(linear.weight, std=1e-2, a=-2e-2, b=2e-2)


class PfeifferMethod(BottleneckMethod):
    """`method: pfeiffer`."""

    name = "pfeiffer"
    places, reads = ("mlp",), "sum"
    non_linearity, reduction_factor, scaling = "relu", 16.0, 1.0

    def start(self, down: nn.Linear, up: nn.Linear) -> None:
        """As BERT starts its layers: both normal with a deviation of 0.02."""
        for linear in (down, up):
            nn.init.normal_(linear.weight, std=0.02)


class ParallelMethod(BottleneckMethod):
    """`method: parallel`."""

    name = "parallel"
    places, reads = ("mlp",), "residual"
    non_linearity, reduction_factor, scaling = "relu", 2.0, 4.0

    def start(self, down: nn.Linear, up: nn.Linear) -> None:
        """As LoRA starts: D uniform, U zero, so that training begins at the base itself."""
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        nn.init.zeros_(up.weight)


class BottleneckModel(SublayerModel):
    """The base with a network at the end of each chosen sublayer, after those of the adapters below."""

    def __init__(self, base: TrainingBase, params: BottleneckParams, dropout: float, below: Sequence[Part]) -> None:
        super().__init__(base)
        self._below = [str(part.reference) for part in below]
        for part in below:
            lay_frozen(base, part.adapter)
        hidden = base.stored.spec.hidden_size
        for layer in params.layers:
            for place in params.places:
                self.put(layer, place, BottleneckNetwork(hidden, params, dropout))

    def outcome(self, params: Any) -> Outcome:
        """See `AdaptedModel.outcome`; it says what lies below."""
        found = super().outcome(params)
        return replace(found, provenance={STACKED_ON: self._below}) if self._below else found


def _layers(options: BottleneckOptions, count: int) -> tuple[int, ...]:
    """Those that `layers` means and `leave_out` leaves. Raises `ConfigError` where either means nothing."""
    chosen = targets.chosen_layers(options.layers, count)
    for layer in options.leave_out:
        if not 0 <= layer < count:
            raise ConfigError("adapter.leave_out", f"no layer {layer}; this base has 0 to {count - 1}")
        if layer not in chosen:
            raise ConfigError(
                "adapter.leave_out",
                f"without effect: layer {layer} is none of adapter.layers, which is {options.layers!r}; take it out",
            )
    left = chosen - set(options.leave_out)
    if not left:
        raise ConfigError("adapter.leave_out", f"no layer is left; this base has 0 to {count - 1}")
    return tuple(sorted(left))


class BottleneckNetwork(nn.Module):
    """One network. D is (d, E), U is (E, d), with biases: float32 master weights, cast where they are used."""

    def __init__(self, hidden: int, params: BottleneckParams, dropout: float) -> None:
        super().__init__()
        self.adapter_down = nn.Linear(hidden, params.bottleneck_size)
        self.adapter_up = nn.Linear(params.bottleneck_size, hidden)
        for linear in (self.adapter_down, self.adapter_up):
            nn.init.zeros_(linear.bias)
        self._params = params
        self._dropout = nn.Dropout(dropout)

    def forward(self, input_BTE: Tensor, residual_BTE: Tensor, y_BTE: Tensor) -> Tensor:
        """The sublayer's output with the network's in it: (B, T, E)."""
        z_BTE = read(self._params.reads, input_BTE, residual_BTE, y_BTE, y_BTE.dtype)
        h_BTd = NON_LINEARITIES[self._params.non_linearity](_apply(self.adapter_down, z_BTE))
        delta_BTE: Tensor = self._dropout(_apply(self.adapter_up, h_BTd) * self._params.scaling)
        return y_BTE + delta_BTE


def _apply(linear: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, linear.weight.to(x.dtype), linear.bias.to(x.dtype))
