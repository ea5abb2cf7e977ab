"""What the methods that train a soft prompt share: a base that reads P trained embeddings before every text.

The virtual tokens take the positions 0 to P - 1 and the text those after them; padding is on the right, so this holds
for every example of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import peft
import torch
from torch import Tensor, nn

from weft_registry.errors import InvalidInputError
from weft_registry.kinds.prompt import TENSOR, PromptParams
from weft_trainer.modeling.adapted import AdaptedModel, load_exactly
from weft_trainer.modeling.base import TrainingBase


class SoftPromptModel(AdaptedModel):
    """A base, and PEFT's encoder that makes the prompt: one embedding, possibly with a network over it."""

    def __init__(self, base: TrainingBase, config: peft.PromptLearningConfig) -> None:
        super().__init__(base)
        # PEFT's own forward pass computes the head at every position; only its encoder is used.
        self.peft = peft.get_peft_model(base.model, config)
        self.encoder: Any = self.peft.prompt_encoder[self.peft.active_adapter].to(base.device).float()
        self.length = config.num_virtual_tokens

    def prompt(self) -> Tensor:
        """The prompt in float32: (P, E)."""
        rows_PE: Tensor = self.encoder(torch.arange(self.length, device=self.base.device)[None])[0]
        return rows_PE

    def hidden(self, batch: Mapping[str, Tensor]) -> Tensor:
        """See `AdaptedModel.hidden`: the states of the text alone."""
        text_BTE: Tensor = self.base.model.get_input_embeddings()(batch["input_ids"])
        mask_BT = batch["attention_mask"]
        prompt_BPE = self.prompt().to(text_BTE.dtype).expand(len(text_BTE), -1, -1)
        joined = {
            **{key: batch[key] for key in ("segment_ids", "position_ids") if key in batch},
            "inputs_embeds": torch.cat([prompt_BPE, text_BTE], dim=1),
            "attention_mask": torch.cat([mask_BT.new_ones(len(mask_BT), self.length), mask_BT], dim=1),
        }
        return self.base.hidden(joined)[:, self.length :]

    @torch.no_grad()
    def export(self) -> dict[str, Tensor]:
        """See `AdaptedModel.export`: what the encoder computes, never the encoder."""
        was_training = self.encoder.training
        self.encoder.eval()
        rows_PE = self.prompt().cpu().clone()
        self.encoder.train(was_training)
        return {TENSOR: rows_PE}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """See `AdaptedModel.restore`. A prompt under a network cannot be restored: the network is not in the file."""
        if not isinstance(self.encoder, peft.PromptEmbedding):
            raise InvalidInputError("a soft prompt under an encoder resumes from its checkpoint, not from a file")
        load_exactly({TENSOR: self.encoder.embedding.weight}, tensors)


def bare_prompt(base: TrainingBase, params: PromptParams) -> SoftPromptModel:
    """A prompt of that shape, its rows trained as they are; PEFT's first values."""
    return SoftPromptModel(
        base,
        peft.PromptTuningConfig(
            task_type=peft.TaskType.CAUSAL_LM,
            num_virtual_tokens=params.num_virtual_tokens,
            token_dim=params.hidden_size,
            num_transformer_submodules=1,
        ),
    )


def base_embedding(base: TrainingBase) -> Tensor:
    """The base's token embeddings, (V, E)."""
    embedding: nn.Embedding = base.model.get_input_embeddings()
    return embedding.weight
