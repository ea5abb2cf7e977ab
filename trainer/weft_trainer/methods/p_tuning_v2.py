"""P-tuning v2 through PEFT: deep prompts, trained as they are (Liu et al. 2021, arXiv:2110.07602).

Every layer attends to keys and values of its own for P virtual tokens, without a network that computes them: the kind
is `prefix`, and what is served is what prefix-tuning makes. The two differ in how it comes about: no projection, a
random start, dropout. The paper's classification head is not there: a base that answers in words needs none.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from weft_registry.base import BaseSpec
from weft_registry.kinds.prefix import TENSOR, PrefixParams
from weft_trainer.config.adapter import PTuningV2Options
from weft_trainer.data.tokenization import TextEncoder
from weft_trainer.methods.prefix import PrefixModel
from weft_trainer.modeling.adapted import AdaptedModel
from weft_trainer.modeling.base import TrainingBase


class PTuningV2Method:
    """`method: p_tuning_v2`."""

    name = "p_tuning_v2"
    kind = "prefix"

    def params(self, options: PTuningV2Options, base: BaseSpec, encoder: TextEncoder) -> PrefixParams:
        """See `Method.params`."""
        return PrefixParams(options.num_virtual_tokens, base.num_layers, base.num_kv_heads, base.head_dim)

    def first_layer(self, params: PrefixParams) -> int:
        """Every layer has a prompt."""
        return 0

    def attach(
        self, base: TrainingBase, params: PrefixParams, options: PTuningV2Options, encoder: TextEncoder
    ) -> AdaptedModel:
        """A normal start of `init_scale`."""
        model = DeepPromptModel(base, params, options.dropout)
        nn.init.normal_(model.encoder.embedding.weight, std=options.init_scale)
        return model

    def bare(self, base: TrainingBase, params: PrefixParams) -> AdaptedModel:
        """See `Method.bare`."""
        return DeepPromptModel(base, params, dropout=0.0)


class DeepPromptModel(PrefixModel):
    """A prefix whose numbers are dropped at random in training."""

    def __init__(self, base: TrainingBase, params: PrefixParams, dropout: float) -> None:
        super().__init__(base, params, projection=False, width=None)
        self._dropout = nn.Dropout(dropout)
        self.encoder.register_forward_hook(self._drop)

    def export(self) -> dict[str, Tensor]:
        """See `AdaptedModel.export`: the parameters themselves, nothing of them dropped."""
        return {TENSOR: self.encoder.embedding.weight.detach().float().cpu().clone()}

    def _drop(self, module: nn.Module, inputs: Any, rows_BPX: Tensor) -> Tensor:
        dropped: Tensor = self._dropout(rows_BPX)
        return dropped
