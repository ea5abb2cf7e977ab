"""The ends of a transformers decoder's sublayers: where a module may change what attention or the MLP adds.

Llama, Mistral, Qwen2 and Qwen3 name the parts of a layer alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from weft_adapters.kinds.bottleneck_network import Network, network, read
from weft_adapters.kinds.kind import Adapter
from weft_registry.kinds.bottleneck import BottleneckParams, sublayer_prefix
from weft_trainer.modeling.base import TrainingBase
from weft_trainer.modeling.inserted import InsertedModel

Change = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(input, residual, y) to what is added instead of y, each (B, T, E): what went into the sublayer after its norm, the
residual stream before the sublayer, the sublayer's output."""

_PARTS = {"attention": ("input_layernorm", "self_attn"), "mlp": ("post_attention_layernorm", "mlp")}


class SublayerModel(InsertedModel):
    """The base with networks of the adapter at the ends of sublayers."""

    def __init__(self, base: TrainingBase) -> None:
        super().__init__(base)
        self.networks = nn.ModuleDict()
        self._prefixes: dict[str, str] = {}
        """What the stored names of each network's tensors begin with, by its name here."""

    def put(self, layer: int, place: str, network: nn.Module) -> None:
        """`network`, called as `Change` says, at the end of the sublayer `place` of the base's layer `layer`."""
        network = network.to(self.base.device)
        key = f"layer{layer}-{place}"
        self.networks[key], self._prefixes[key] = network, sublayer_prefix(layer, place)
        at_end_of(self.base, layer, place, network)

    def stored(self) -> dict[str, Tensor]:
        """See `InsertedModel.stored`."""
        return {
            f"{self._prefixes[key]}{name}": parameter
            for key, network in self.networks.items()
            for name, parameter in network.named_parameters()
        }


def at_end_of(base: TrainingBase, layer: int, place: str, change: Change) -> None:
    """From now on the sublayer `place` of the base's layer `layer` adds what `change` makes of its output."""
    norm, sublayer = _PARTS[place]
    end = _End(change)
    block: nn.Module = base.model.model.layers[layer - base.first_layer]
    block.get_submodule(norm).register_forward_hook(end.before)
    block.get_submodule(sublayer).register_forward_hook(end.after)


def lay_frozen(base: TrainingBase, adapter: Adapter[BottleneckParams]) -> None:
    """Puts a bottleneck adapter at the ends of the base's sublayers: what is put there later reads what it leaves."""
    for layer in adapter.params.layers:
        for place in adapter.params.places:
            one = network(adapter, layer, place)
            assert one is not None, "there is one wherever the parameters say so"
            at_end_of(base, layer, place, partial(_added, frozen(one, base)))


def frozen(one: Network, base: TrainingBase) -> Network:
    """A network of an adapter that is not trained, as the base computes with it."""
    down_dE, down_d, up_Ed, up_E = (
        tensor.detach().to(base.device, base.dtype) for tensor in (one.down_dE, one.down_d, one.up_Ed, one.up_E)
    )
    return replace(one, down_dE=down_dE, down_d=down_d, up_Ed=up_Ed, up_E=up_E)


def _added(one: Network, input_BTE: Tensor, residual_BTE: Tensor, y_BTE: Tensor) -> Tensor:
    z_BTE = read(one.reads, input_BTE, residual_BTE, y_BTE, y_BTE.dtype)
    return y_BTE + one.delta(z_BTE.flatten(0, -2)).view(y_BTE.shape)


class _End:
    """Holds what the norm saw until the sublayer that follows it is done."""

    def __init__(self, change: Change) -> None:
        self._change = change
        self._seen: tuple[Tensor, Tensor] | None = None

    def before(self, norm: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        """A forward hook of the sublayer's norm."""
        self._seen = output, arguments[0]

    def after(self, sublayer: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        """A forward hook of the sublayer itself; attention gives its weights beside its output."""
        assert self._seen is not None, "a sublayer ran without its norm"
        (entered, residual), self._seen = self._seen, None
        if isinstance(output, Tensor):
            return self._change(entered, residual, output)
        return (self._change(entered, residual, output[0]), *output[1:])
