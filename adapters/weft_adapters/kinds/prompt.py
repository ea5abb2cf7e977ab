"""Soft prompts: trained embeddings of virtual tokens before the request's own.

Prompt tuning (Lester et al. 2021, arXiv:2104.08691) and P-tuning (Liu et al. 2021, arXiv:2103.10385), whose encoder's
output is what is stored. The virtual tokens go through every layer as text does, at positions 0 to P - 1.
"""

from __future__ import annotations

from torch import Tensor

from weft_adapters.int4 import Int4Weight
from weft_adapters.kinds.kind import Adapter, Kind, MergeRefusedError
from weft_registry.kinds.prompt import TENSOR, PromptParams, PromptSchema


class Prompt(Kind[PromptParams]):
    """Input embeddings that no token has."""

    schema = PromptSchema()

    def soft_prompt(self, adapter: Adapter[PromptParams]) -> Tensor:
        """The stored rows, (P, E)."""
        return adapter.tensors[TENSOR]

    def overlay(self, module: str, weight: Int4Weight, adapter: Adapter[PromptParams]) -> None:
        """Refused: a soft prompt is an input, not a weight."""
        raise MergeRefusedError(
            "a soft prompt cannot be merged: it stands before the request's tokens and changes no weight; it is served "
            "in the batch beside any merged adapter"
        )
