"""Training of the base's own weights, on a float copy of them; the change is then extracted to a LoRA adapter.

Served in the batch like any LoRA, an extracted change is an approximation: the scores of both, before and after, are in
the manifest. Trained weights are float32; the base computes in its own dtype. What stays frozen stays int4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from weft_adapters.base import layout
from weft_adapters.base.load import StoredBase
from weft_adapters.extract_checkpoint import extraction_provenance
from weft_adapters.extraction import Truncation, extract
from weft_adapters.finetuning import differences
from weft_adapters.int4 import Int4Linear
from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError, PreconditionError
from weft_registry.kinds.low_rank import LowRankParams
from weft_trainer.config.adapter import FullOptions
from weft_trainer.config.strict import ConfigError
from weft_trainer.data.tokenization import TextEncoder
from weft_trainer.methods import unfreezing
from weft_trainer.methods.lora import LoraMethod
from weft_trainer.modeling.adapted import AdaptedModel, Outcome
from weft_trainer.modeling.base import TrainingBase, layer_of

DEFAULT_RANK = 16


@dataclass(frozen=True)
class FullParams:
    """What a run trains, as far as a base's dimensions tell: which biases and norms there are, its weights tell."""

    unfreeze: tuple[str, ...]
    freeze: tuple[str, ...]
    ignore_rest: bool
    truncation: Truncation
    first_layer: int


class FullMethod:
    """`method: full`: by default everything that a LoRA can carry."""

    name = "full"
    kind = "lora"

    def params(self, options: FullOptions, base: BaseSpec, encoder: TextEncoder) -> FullParams:
        """See `Method.params`."""
        unfreeze = options.unfreeze or self._default(base)
        found = unfreezing.resolve(unfreeze, options.freeze, _possible(base))
        layers = [layer_of(name) for name in found if name != unfreezing.LAST_NORM]
        # The head may be the embedding.
        first = min((0 if layer is None else layer for layer in layers), default=base.num_layers - 1)
        given = options.extract
        rank = given.rank or (DEFAULT_RANK if given.energy is None else None)
        return FullParams(unfreeze, options.freeze, options.ignore_rest, Truncation(rank, given.energy), first)

    def first_layer(self, params: FullParams) -> int:
        """See `Method.first_layer`."""
        return params.first_layer

    def attach(
        self, base: TrainingBase, params: FullParams, options: FullOptions, encoder: TextEncoder
    ) -> AdaptedModel:
        """The base's own values."""
        return FullModel(base, params)

    def bare(self, base: TrainingBase, params: LowRankParams) -> AdaptedModel:
        """What it makes is a LoRA."""
        return LoraMethod().bare(base, params)

    def _default(self, base: BaseSpec) -> tuple[str, ...]:
        return tuple(unfreezing.carried(base))


class PartialMethod(FullMethod):
    """`method: partial`: what `adapter.unfreeze` says."""

    name = "partial"

    def _default(self, base: BaseSpec) -> tuple[str, ...]:
        raise InvalidInputError(
            'adapter.unfreeze: missing; say what partial trains, such as ["model.layers.28.*"], or take method: full'
        )


class FullModel(AdaptedModel):
    """The base with some of its weights as float32 parameters."""

    def __init__(self, base: TrainingBase, params: FullParams) -> None:
        super().__init__(base)
        self.params = params
        self.names = trained_weights(base.stored, params)
        """What is trained, by the names that transformers gives the weights."""
        self.weights: dict[str, nn.Parameter] = {name: self._thaw(name) for name in self.names}
        # Registered once and as a whole, so that `named_parameters` finds the weights in their places in the model.
        self.model = base.model

    def hidden(self, batch: Mapping[str, Tensor]) -> Tensor:
        """See `AdaptedModel.hidden`."""
        return self.base.hidden(batch)

    def read(self, name: str) -> Tensor:
        """A weight of the trained model, or of the base where it was not trained, by transformers' name."""
        if name in self.weights:
            return self.weights[name].detach().float().cpu()
        return _base_weight(self.base, name)

    def outcome(self, params: Any) -> Outcome:
        """See `AdaptedModel.outcome`: the LoRA nearest to what training changed."""
        stored = self.base.stored
        linears = [module for module in stored.spec.linears if f"{module}.weight" in self.weights]
        trained = {f"{module}.weight" for module in linears}
        others = [name for name in self.names if name not in trained]
        found = differences(stored, self.read, modules=linears, others=others)
        extracted = extract(found.deltas(), self.params.truncation)
        if not extracted.tensors:
            raise PreconditionError("training changed no weight; raise training.learning_rate or training.steps")
        record = extraction_provenance(extracted, self.params.truncation, found)
        extra = {"trained": list(self.names), "extraction": record}
        return Outcome(extracted.params, extracted.tensors, extra, exact=False, read=self.read)

    def export(self) -> dict[str, Tensor]:
        """See `AdaptedModel.export`."""
        return dict(self.outcome(self.params).tensors)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Refused: the adapter is an approximation of the weights."""
        raise InvalidInputError("trained weights resume from a checkpoint, not from the adapter made of them")

    def _thaw(self, name: str) -> nn.Parameter:
        """Makes one weight a float32 parameter, which its module sees in the base's dtype."""
        base = self.base
        path, _, leaf = base.local(name).rpartition(".")
        owner = base.model.get_submodule(path)
        if isinstance(owner, Int4Linear):
            owner = _dense(owner, base.dtype)
            parent, _, child = path.rpartition(".")
            setattr(base.model.get_submodule(parent), child, owner)
        parameter = nn.Parameter(_base_weight(base, name).to(base.device, copy=True))
        holders = [owner]
        if name == layout.EMBEDDING and base.stored.config.tie_word_embeddings:
            holders.append(base.model.lm_head)
        for holder in holders:
            setattr(holder, leaf, parameter)
            if base.dtype != torch.float32:
                parametrize.register_parametrization(holder, leaf, _Cast(base.dtype), unsafe=True)
        return parameter


class _Cast(nn.Module):
    """A float32 master weight in the dtype that the base computes in."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def forward(self, weight: Tensor) -> Tensor:
        return weight.to(self._dtype)


def _dense(layer: Int4Linear, dtype: torch.dtype) -> nn.Linear:
    bias = layer._buffers["bias"]
    linear = nn.Linear(layer.in_features, layer.out_features, bias is not None, device="meta")
    linear.weight = nn.Parameter(layer.int4.dequantize(dtype), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    return linear


def _base_weight(base: TrainingBase, name: str) -> Tensor:
    stored, module = base.stored, name.removesuffix(".weight")
    if module in stored.spec.linears and name != module:
        return stored.int4(module).dequantize()
    return stored.dense(name, torch.float32)


def trained_weights(stored: StoredBase, params: FullParams) -> tuple[str, ...]:
    """What a run trains, by the names that transformers gives the weights. Raises `ConfigError` for what this base has
    not, or no LoRA can carry."""
    actual = [*(f"{module}.weight" for module in stored.spec.linears), *layout.dense_tensors(stored.config)]
    names = unfreezing.resolve(params.unfreeze, params.freeze, actual)
    carried = set(unfreezing.carried(stored.spec))
    rest = [name for name in names if name not in carried]
    if rest and not params.ignore_rest:
        raise ConfigError(
            "adapter.unfreeze",
            f"no LoRA can carry what {', '.join(rest[:5])}{' and others' * (len(rest) > 5)} would learn; name them in "
            "adapter.freeze, or set adapter.ignore_rest to train them and leave that out of the adapter",
        )
    if len(rest) == len(names):
        raise ConfigError(
            "adapter.unfreeze",
            "nothing of it can be carried by a LoRA: the adapter would be empty; add some of the linears",
        )
    return names


def possible_weights(params: FullParams, base: BaseSpec) -> tuple[str, ...]:
    """What a run trains of a base of these dimensions, if it has all that such a base may have."""
    return unfreezing.resolve(params.unfreeze, params.freeze, _possible(base))


def _possible(base: BaseSpec) -> list[str]:
    """Every weight that some base of these dimensions has: `FullModel` knows which there are."""
    biases = [f"{module}.bias" for module in base.linears]
    norms = [f"model.layers.{i}.self_attn.{n}_norm.weight" for i in range(base.num_layers) for n in "qk"]
    others = [unfreezing.EMBEDDING, unfreezing.HEAD, unfreezing.LAST_NORM]
    return [*unfreezing.carried(base), *biases, *norms, *others]
