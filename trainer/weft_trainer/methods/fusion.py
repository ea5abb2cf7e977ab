"""AdapterFusion: with the base and the parts frozen, an attention over the parts' outputs is trained (Pfeiffer et al.
2021, arXiv:2005.00247, section 3.2).

Stage one of the paper is any bottleneck method, once for each part; this is stage two. Own code: PEFT has no fusion.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weft_adapters.kinds.bottleneck_network import Network, network, read
from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError
from weft_registry.kinds.fusion import FusionParams, check_alike
from weft_trainer.config.adapter import FusionOptions
from weft_trainer.config.strict import ConfigError
from weft_trainer.data.tokenization import TextEncoder
from weft_trainer.methods.parts import Part
from weft_trainer.modeling.adapted import AdaptedModel
from weft_trainer.modeling.base import TrainingBase
from weft_trainer.modeling.sublayers import SublayerModel, frozen


class FusionMethod:
    """`method: fusion`."""

    name = kind = "fusion"

    def __init__(self, parts: Sequence[Part] = ()) -> None:
        self.parts = tuple(parts)

    def over(self, parts: Sequence[Part]) -> FusionMethod:
        """See `CompositeMethod.over`."""
        return FusionMethod(parts)

    def params(self, options: FusionOptions, base: BaseSpec, encoder: TextEncoder) -> FusionParams:
        """See `Method.params`: where the parts stand and what they read is theirs to say."""
        first = self.parts[0].adapter.params
        params = FusionParams(
            parts=tuple(part.reference for part in self.parts),
            reads=first.reads,
            places=first.places,
            layers=first.layers,
            value=options.value,
        )
        for part in self.parts[1:]:
            try:
                check_alike(params, part.reference, part.adapter.params)
            except InvalidInputError as error:
                raise ConfigError(
                    "adapter.parts",
                    f"{error.message}; leave it out, or train it as {self.parts[0].reference.adapter} is",
                    reason=error.reason,
                ) from error
        return params

    def first_layer(self, params: FusionParams) -> int:
        """See `Method.first_layer`."""
        return params.layers[0]

    def attach(
        self, base: TrainingBase, params: FusionParams, options: FusionOptions, encoder: TextEncoder
    ) -> AdaptedModel:
        """Query and key near zero, so that the parts weigh about the same; the value matrix nearly the identity."""
        return FusionModel(base, params, self.parts, options.regularization)

    def bare(self, base: TrainingBase, params: FusionParams) -> AdaptedModel:
        """See `Method.bare`."""
        return FusionModel(base, params, self.parts, regularization=0.0)


class FusionModel(SublayerModel):
    """The base with frozen parts, and an attention over them at the end of each of their sublayers. Stores the
    attention alone: the parts are artifacts of their own."""

    def __init__(self, base: TrainingBase, params: FusionParams, parts: Sequence[Part], regularization: float) -> None:
        super().__init__(base)
        hidden = base.stored.spec.hidden_size
        self._regularization = regularization if params.value else 0.0
        for layer in params.layers:
            for place in params.places:
                found = [network(part.adapter, layer, place) for part in parts]
                over = [frozen(one, base) for one in found if one is not None]
                self.put(layer, place, FusionLayer(hidden, over, params.value))

    def forward(self, *, num_items_in_batch: Tensor | int | None = None, **batch: Tensor) -> dict[str, Tensor]:
        """See `AdaptedModel.forward`; in training, plus the regularization of the value matrices towards the identity
        (once for each optimizer step, however many forward passes it has)."""
        result = super().forward(num_items_in_batch=num_items_in_batch, **batch)
        if self.training and self._regularization:
            share = 1.0
            if num_items_in_batch is not None:
                share = self.objective.items(batch) / float(num_items_in_batch)
            result["loss"] = result["loss"] + self._regularization * share * self.distance()
        return result

    def distance(self) -> Tensor:
        """The squared distance of the value matrices from the identity, summed over all sublayers."""
        total = torch.zeros((), device=self.base.device)
        for fusion in self.networks.values():
            assert isinstance(fusion, FusionLayer)
            if fusion.value is not None:
                identity = torch.eye(fusion.value.weight.shape[0], device=self.base.device)
                total = total + (fusion.value.weight - identity).square().sum()
        return total


class FusionLayer(nn.Module):
    """`y + V sum_i p_i u_i`, `p = softmax_i((Q z + b_Q) . (K u_i + b_K))`: the equation as it is written, so that the
    server's rearranged one has something to be compared with. Q, K, V are float32 master weights."""

    def __init__(self, hidden: int, networks: Sequence[Network], value: bool) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden, bias=False) if value else None
        self._networks = tuple(networks)
        with torch.no_grad():
            for linear in (self.query, self.key):
                nn.init.normal_(linear.weight, std=0.02)
                nn.init.zeros_(linear.bias)
            if self.value is not None:
                # Section 3.2.2 of the paper: ones on the diagonal, and nearly nothing beside it.
                self.value.weight.fill_(1e-6).fill_diagonal_(1.0)

    def forward(self, input_BTE: Tensor, residual_BTE: Tensor, y_BTE: Tensor) -> Tensor:
        """The sublayer's output with the fusion's in it: (B, T, E)."""
        dtype = y_BTE.dtype
        z_BTE = read(self._networks[0].reads, input_BTE, residual_BTE, y_BTE, dtype)
        z_TE = z_BTE.flatten(0, -2)
        u_TPE = torch.stack([one.delta(z_TE) for one in self._networks], dim=-2)
        q_TE = F.linear(z_TE, self.query.weight.to(dtype), self.query.bias.to(dtype))
        k_TPE = F.linear(u_TPE, self.key.weight.to(dtype), self.key.bias.to(dtype))
        v_TPE = u_TPE if self.value is None else F.linear(u_TPE, self.value.weight.to(dtype))
        p_TP = (q_TE[:, None].float() * k_TPE.float()).sum(-1).softmax(-1)
        mixed_TE = (p_TP[..., None] * v_TPE.float()).sum(-2)
        return y_BTE + mixed_TE.to(dtype).view(y_BTE.shape)
