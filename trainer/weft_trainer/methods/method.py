"""One training method: options become parameters, parameters become a trainable model. One file implements one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from weft_registry.base import BaseSpec
from weft_trainer.data.tokenization import TextEncoder
from weft_trainer.methods.parts import Part
from weft_trainer.modeling.adapted import AdaptedModel
from weft_trainer.modeling.base import TrainingBase


class Method(Protocol):
    """Stateless. The methods there are: `weft_trainer.methods.METHODS`."""

    name: str
    """`method:` in a training configuration."""
    kind: str
    """The adapter kind it makes: the manifest's `kind`."""

    def params(self, options: Any, base: BaseSpec, encoder: TextEncoder) -> Any:
        """The kind's parameters (`weft_registry.kinds`) for this base. Raises `InvalidInputError` naming the option."""
        ...

    def first_layer(self, params: Any) -> int:
        """The lowest layer whose input the adapter can change."""
        ...

    def attach(self, base: TrainingBase, params: Any, options: Any, encoder: TextEncoder) -> AdaptedModel:
        """A freshly initialized adapter on `base`, which may hold only the layers from `first_layer` up. Draws from
        torch's global generator."""
        ...

    def bare(self, base: TrainingBase, params: Any) -> AdaptedModel:
        """The same without initial values that mean anything: for `AdaptedModel.restore`."""
        ...


@runtime_checkable
class CompositeMethod(Method, Protocol):
    """A method whose adapters are made over others, its parts."""

    def over(self, parts: Sequence[Part]) -> Method:
        """The same with its parts, which all other calls need."""
        ...
