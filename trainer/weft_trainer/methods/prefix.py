"""Prefix-tuning through PEFT: trained keys and values before every layer's own (Li and Liang 2021, arXiv:2101.00190).

The prefix lies in the key-value cache as it is, without rotary embedding; text positions start after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import peft
import torch
from torch import Tensor, nn

from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError
from weft_registry.kinds.prefix import TENSOR, PrefixParams
from weft_trainer.config.adapter import PrefixOptions
from weft_trainer.data.tokenization import TextEncoder
from weft_trainer.methods.virtual_tokens import count_virtual_tokens
from weft_trainer.modeling.adapted import AdaptedModel, load_exactly
from weft_trainer.modeling.base import TrainingBase

DEFAULT_VIRTUAL_TOKENS = 16


class PrefixMethod:
    """`method: prefix`."""

    name = kind = "prefix"

    def params(self, options: PrefixOptions, base: BaseSpec, encoder: TextEncoder) -> PrefixParams:
        """See `Method.params`."""
        count = count_virtual_tokens(options.num_virtual_tokens, options.init_text, DEFAULT_VIRTUAL_TOKENS, encoder)
        return PrefixParams(count, base.num_layers, base.num_kv_heads, base.head_dim)

    def first_layer(self, params: PrefixParams) -> int:
        """Every layer has a prefix."""
        return 0

    def attach(
        self, base: TrainingBase, params: PrefixParams, options: PrefixOptions, encoder: TextEncoder
    ) -> AdaptedModel:
        """Starts at the keys and values of `init_text`, or at random."""
        model = PrefixModel(base, params, options.prefix_projection, options.encoder_hidden_size)
        if options.init_text is not None:
            model.restore({TENSOR: text_prefix(base, params, encoder.completion(options.init_text))})
        elif not options.prefix_projection:
            nn.init.normal_(model.encoder.embedding.weight, std=options.init_scale)
        return model

    def bare(self, base: TrainingBase, params: PrefixParams) -> AdaptedModel:
        """See `Method.bare`."""
        return PrefixModel(base, params, projection=False, width=None)


class PrefixModel(AdaptedModel):
    """A PEFT model around the base. With a projection, export keeps only the prefix that the MLP computes."""

    def __init__(self, base: TrainingBase, params: PrefixParams, projection: bool, width: int | None) -> None:
        super().__init__(base)
        token_dim = params.num_kv_heads * params.head_dim
        config = peft.PrefixTuningConfig(
            task_type=peft.TaskType.CAUSAL_LM,
            num_virtual_tokens=params.num_virtual_tokens,
            num_layers=params.num_layers,
            num_attention_heads=params.num_kv_heads,
            token_dim=token_dim,
            encoder_hidden_size=width or token_dim,
            prefix_projection=projection,
            num_transformer_submodules=1,
        )
        self.length = params.num_virtual_tokens
        self.peft = peft.get_peft_model(base.model, config)
        self.encoder: Any = self.peft.prompt_encoder[self.peft.active_adapter].to(base.device).float()

    def hidden(self, batch: Mapping[str, Tensor]) -> Tensor:
        """See `AdaptedModel.hidden`."""
        mask_BT = batch["attention_mask"]
        seen = mask_BT.new_ones(mask_BT.shape[0], self.length)
        return self.base.hidden(
            {**batch, "attention_mask": torch.cat([seen, mask_BT], dim=1)},
            past_key_values=self.peft.get_prompt(mask_BT.shape[0]),
        )

    def export(self) -> dict[str, Tensor]:
        """See `AdaptedModel.export`."""
        prompt: Tensor = self.peft.get_prompt_embedding_to_save(self.peft.active_adapter)
        return {TENSOR: prompt.detach().float().cpu().clone()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """See `AdaptedModel.restore`. A projected prefix cannot be restored: its MLP is not in the file."""
        if self.encoder.prefix_projection:
            raise InvalidInputError("a prefix under prefix_projection resumes from its checkpoint, not from a file")
        load_exactly({TENSOR: self.encoder.embedding.weight}, tensors)


@torch.no_grad()
def text_prefix(base: TrainingBase, params: PrefixParams, ids: list[int]) -> Tensor:
    """The base's cache after reading `ids`, repeated to the prefix's length, as (P, L * 2 * H * D).

    The cached keys are rotated for positions 0 to P - 1, and a prefix is never rotated again, so the base with this
    prefix IS the base that has read the text.
    """
    from transformers import DynamicCache

    repeated = (ids * -(-params.num_virtual_tokens // len(ids)))[: params.num_virtual_tokens]
    cache: Any = DynamicCache()
    tokens = torch.tensor([repeated], device=base.device)
    base.model.model(input_ids=tokens, past_key_values=cache, use_cache=True)
    rows = [t[0].transpose(0, 1).flatten(1) for layer in cache.layers for t in (layer.keys, layer.values)]
    return torch.cat([row.float() for row in rows], dim=1)
