"""A stored base as a transformers model whose block linears are int4, whole or only some of its layers.

No random initialization and no dense copy of the linears: the model is made on the meta device and every tensor of it
is assigned. Knows no adapters.

Shapes here and below: B examples, T positions, D hidden size, V vocabulary, C completion tokens of the whole batch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weft_adapters.base.load import StoredBase
from weft_adapters.int4 import Int4Linear, Int4Weight
from weft_adapters.processor import fast_dtype
from weft_registry.errors import UnsupportedError
from weft_trainer.modeling.packed_attention import packed_arguments
from weft_trainer.quiet import quiet_transformers

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
"""What a base can compute in while it trains, by the names of a configuration."""
_SHORT = 128
_LAYER = re.compile(r"(.*\.layers\.)(\d+)(\..*)")


def decide_dtype(name: str, device: torch.device) -> torch.dtype:
    """What a base computes in there; "auto" is what is fastest."""
    return fast_dtype(device) if name == "auto" else DTYPES[name]


def layer_of(name: str) -> int | None:
    """The layer index in a module or tensor name, or None."""
    match = _LAYER.fullmatch(name)
    return int(match[2]) if match else None


def shift_layer(name: str, by: int) -> str:
    """The same name `by` layers further up."""
    match = _LAYER.fullmatch(name)
    return name if match is None else f"{match[1]}{int(match[2]) + by}{match[3]}"


@dataclass(frozen=True, eq=False)
class TrainingBase:
    """Some consecutive layers of a base, with the embedding, the last norm and the head."""

    stored: StoredBase
    model: Any
    """A transformers causal LM, frozen. Its layer 0 is the base's layer `first_layer`."""
    first_layer: int
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    def local(self, module: str) -> str:
        """The base's module name as this model's."""
        return shift_layer(module, -self.first_layer)

    def hidden(self, batch: Mapping[str, Tensor], **more: Any) -> Tensor:
        """The states after the last norm, (B, T, D), of `input_ids`, or of `inputs_embeds` that enter layer 0.

        The batch may be packed (`weft_trainer.data.batches.PackedBatches`).
        """
        known = {key: batch[key] for key in ("input_ids", "inputs_embeds", "attention_mask") if key in batch}
        if "segment_ids" in batch:
            known |= packed_arguments(batch, self.model.config._attn_implementation, self.dtype)
        states: Tensor = self.model.model(**{**known, "use_cache": False, **more}).last_hidden_state
        return states

    def logits(self, states: Tensor) -> Tensor:
        """The head: (..., D) to (..., V)."""
        logits: Tensor = self.model.lm_head(states)
        return logits


def build(
    stored: StoredBase,
    dtype: torch.dtype,
    *,
    layers: range | None = None,
    dense: bool = False,
    attention: str = "sdpa",
    overlays: Mapping[str, Int4Weight | Tensor] | None = None,
    biases: Mapping[str, Tensor] | None = None,
    device: torch.device | str = "cpu",
) -> TrainingBase:
    """The base's `layers` (all by default) as a frozen transformers model.

    `dense` makes the linears dense, in `dtype`. `attention` is transformers' `attn_implementation`. `overlays` and
    `biases` replace those of linears by full name, as a merge does. Raises `UnsupportedError` for an architecture that
    transformers builds otherwise than this module expects.
    """
    quiet_transformers()
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(stored.tokenizer_dir))
    layers = layers if layers is not None else range(config.num_hidden_layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in layers]
    config.num_hidden_layers = len(layers)
    config.use_cache = False
    with torch.device("meta"):
        make: Any = AutoModelForCausalLM.from_config
        model = make(config, dtype=dtype, attn_implementation=attention)
    first = layers.start
    for module in stored.spec.linears:
        if layer_of(module) in layers:
            merged = (overlays or {}).get(module)
            weight = stored.int4(module) if merged is None else merged
            bias = (biases or {}).get(module, stored.bias(module))
            replace_module(model, shift_layer(module, -first), _linear(weight, bias, dtype, dense))
    _assign(model, stored, first, dtype)
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
    model.requires_grad_(False)
    model.eval()
    left = [name for name, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta]
    if left:
        raise UnsupportedError(f"{config.model_type}: the stored base has no {', '.join(left[:5])}")
    return TrainingBase(stored, model.to(device), first, dtype)


def attention_for(device: torch.device, length: int) -> str:
    """The attention that trains fastest: torch's fused one, except for short sequences on a CPU.

    There the backward pass of the fused CPU kernel took a quarter of a prefix-tuning step at 34 tokens, where plain
    matrix products and a softmax take almost nothing. Their scores grow with the square of the length, hence a limit.
    """
    return "eager" if device.type == "cpu" and length <= _SHORT else "sdpa"


def _linear(weight: Int4Weight | Tensor, bias: Tensor | None, dtype: torch.dtype, dense: bool) -> nn.Module:
    if isinstance(weight, Int4Weight):
        if not dense:
            return Int4Linear(weight, bias)
        weight = weight.dequantize(dtype)
    return dense_linear(weight, bias, dtype)


def dense_linear(weight_NK: Tensor, bias_N: Tensor | None, dtype: torch.dtype) -> nn.Linear:
    """A frozen linear layer over a dense weight, in `dtype`."""
    linear = nn.Linear(weight_NK.shape[1], weight_NK.shape[0], bias_N is not None, device="meta")
    linear.weight = nn.Parameter(weight_NK.to(dtype), requires_grad=False)
    if bias_N is not None:
        linear.bias = nn.Parameter(bias_N.to(dtype), requires_grad=False)
    return linear


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts `module` in the place of the one of that name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _assign(model: Any, stored: StoredBase, first: int, dtype: torch.dtype) -> None:
    """Gives every parameter that is still on the meta device its stored values: embedding, norms, an untied head."""
    embedding = nn.Parameter(stored.embedding(dtype), requires_grad=False)
    tied = model.config.tie_word_embeddings
    names = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    for name in names:
        if name == "model.embed_tokens.weight" or (tied and name == "lm_head.weight"):
            value = embedding
        else:
            value = nn.Parameter(stored.dense(shift_layer(name, first), dtype), requires_grad=False)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, value)
    model.lm_head.weight = embedding if tied else model.lm_head.weight
