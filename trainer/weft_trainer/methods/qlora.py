"""QLoRA: LoRA trained through a frozen 4-bit base (Dettmers et al. 2023, arXiv:2305.14314).

That is what `method: lora` is here already: its base is the int4 one that is served, dequantized where a product needs
it, and adapter and optimizer are in float32. This method says so by its name, and offers the paper's own data type, NF4
with double quantization. The artifact is a LoRA either way.
"""

from __future__ import annotations

from weft_registry.kinds.low_rank import LowRankParams
from weft_trainer.config.adapter import LoraOptions
from weft_trainer.data.tokenization import TextEncoder
from weft_trainer.methods.lora import LoraMethod
from weft_trainer.modeling import nf4
from weft_trainer.modeling.adapted import AdaptedModel
from weft_trainer.modeling.base import TrainingBase


class QLoraMethod(LoraMethod):
    """`method: qlora`."""

    name = "qlora"

    def attach(
        self, base: TrainingBase, params: LowRankParams, options: LoraOptions, encoder: TextEncoder
    ) -> AdaptedModel:
        """LoRA's, over the base in the data type that was asked for."""
        if nf4.is_asked_for(options):
            nf4.replace_linears(base)
        return super().attach(base, params, options, encoder)
