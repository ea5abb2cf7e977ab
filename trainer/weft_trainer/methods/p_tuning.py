"""P-tuning through PEFT: a trained encoder computes the prompt's embeddings (Liu et al. 2021, arXiv:2103.10385).

    p_i = MLP(h_i)    with h = LSTM(e_1, ..., e_P) from both sides, or h = e without one

The trained inputs e and the encoder exist in training only; what is stored and served is p, as with prompt tuning. The
prompt stands before the text, where the paper also puts parts of it between and after the text's.
"""

from __future__ import annotations

import peft

from weft_registry.base import BaseSpec
from weft_registry.kinds.prompt import PromptParams
from weft_trainer.config.adapter import PTuningOptions
from weft_trainer.data.tokenization import TextEncoder
from weft_trainer.methods.soft_prompt import SoftPromptModel, bare_prompt
from weft_trainer.modeling.adapted import AdaptedModel
from weft_trainer.modeling.base import TrainingBase

_DEFAULT_LSTM_LAYERS = 2


class PTuningMethod:
    """`method: p_tuning`."""

    name = "p_tuning"
    kind = "prompt"

    def params(self, options: PTuningOptions, base: BaseSpec, encoder: TextEncoder) -> PromptParams:
        """See `Method.params`."""
        return PromptParams(options.num_virtual_tokens, base.hidden_size)

    def first_layer(self, params: PromptParams) -> int:
        """The prompt is an input of the whole base."""
        return 0

    def attach(
        self, base: TrainingBase, params: PromptParams, options: PTuningOptions, encoder: TextEncoder
    ) -> AdaptedModel:
        """PEFT's own first values for the encoder and its inputs."""
        return SoftPromptModel(
            base,
            peft.PromptEncoderConfig(
                task_type=peft.TaskType.CAUSAL_LM,
                num_virtual_tokens=params.num_virtual_tokens,
                token_dim=params.hidden_size,
                num_transformer_submodules=1,
                encoder_reparameterization_type=options.encoder.upper(),
                encoder_hidden_size=options.encoder_hidden_size or params.hidden_size,
                encoder_num_layers=options.encoder_num_layers or _DEFAULT_LSTM_LAYERS,
                encoder_dropout=options.encoder_dropout,
            ),
        )

    def bare(self, base: TrainingBase, params: PromptParams) -> AdaptedModel:
        """See `Method.bare`: without the encoder."""
        return bare_prompt(base, params)
