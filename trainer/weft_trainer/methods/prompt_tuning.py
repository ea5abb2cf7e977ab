"""Prompt tuning through PEFT: trained embeddings before the text's own (Lester et al. 2021, arXiv:2104.08691).

`[p_1, ..., p_P; E(x_1), ..., E(x_T)]` enters the base, and only the p are trained.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weft_registry.base import BaseSpec
from weft_registry.kinds.prompt import TENSOR, PromptParams
from weft_trainer.config.adapter import PromptOptions
from weft_trainer.data.tokenization import TextEncoder
from weft_trainer.methods.soft_prompt import bare_prompt, base_embedding
from weft_trainer.methods.virtual_tokens import count_virtual_tokens
from weft_trainer.modeling.adapted import AdaptedModel
from weft_trainer.modeling.base import TrainingBase

DEFAULT_VIRTUAL_TOKENS = 20
DEFAULT_VOCABULARY = 5000


class PromptTuningMethod:
    """`method: prompt_tuning`."""

    name = "prompt_tuning"
    kind = "prompt"

    def params(self, options: PromptOptions, base: BaseSpec, encoder: TextEncoder) -> PromptParams:
        """See `Method.params`."""
        count = count_virtual_tokens(options.num_virtual_tokens, options.init_text, DEFAULT_VIRTUAL_TOKENS, encoder)
        return PromptParams(count, base.hidden_size)

    def first_layer(self, params: PromptParams) -> int:
        """The prompt is an input of the whole base."""
        return 0

    def attach(
        self, base: TrainingBase, params: PromptParams, options: PromptOptions, encoder: TextEncoder
    ) -> AdaptedModel:
        """Starts at the embeddings of `init_text`, of tokens drawn from the vocabulary, or at random."""
        model = bare_prompt(base, params)
        model.restore({TENSOR: first_rows(base_embedding(base), params, options, encoder)})
        return model

    def bare(self, base: TrainingBase, params: PromptParams) -> AdaptedModel:
        """See `Method.bare`."""
        return bare_prompt(base, params)


@torch.no_grad()
def first_rows(embedding_VE: Tensor, params: PromptParams, options: PromptOptions, encoder: TextEncoder) -> Tensor:
    """The prompt's first values, (P, E) in float32."""
    count = params.num_virtual_tokens
    if options.init_text is not None:
        ids = encoder.completion(options.init_text)
        # A text that is too short begins again, as PEFT does it.
        return embedding_VE[torch.tensor(ids * -(-count // len(ids)))[:count]].float()
    if options.init == "random":
        # The spread of real words: PEFT's of 1 is many times theirs, and far from every input that the base knows.
        return torch.randn(count, params.hidden_size).to(embedding_VE.device) * embedding_VE.float().std()
    common = min(options.init_vocabulary or DEFAULT_VOCABULARY, len(embedding_VE))
    return embedding_VE[torch.randint(common, (count,))].float()
