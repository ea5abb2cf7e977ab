"""The base in 4-bit NormalFloat with double quantization (QLoRA, arXiv:2305.14314, section 3), by bitsandbytes.

What is quantized is the stored base's own int4 weights, dequantized: they are what is served, and all that is there. An
adapter trained so meets another rounding when it is served: `weft eval` scores it over the base that serves it.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from torch import nn

from weft_adapters.int4 import Int4Linear
from weft_registry.errors import InvalidInputError, PreconditionError
from weft_trainer.config.adapter import QLoraOptions
from weft_trainer.config.run import TrainConfig
from weft_trainer.modeling.base import TrainingBase, replace_module

_WAY_OUT = "take adapter.quantization: int4, which trains on the base as it is served"


def is_asked_for(options: object) -> bool:
    """Whether a method's options say so."""
    return isinstance(options, QLoraOptions) and options.quantization == "nf4"


def check(config: TrainConfig) -> None:
    """Before anything is loaded: raises `PreconditionError` where bitsandbytes is not installed, and
    `InvalidInputError` for a base that is to be dense besides; nothing where it is not asked for."""
    if not is_asked_for(config.adapter):
        return
    if config.training.dense_base:
        raise InvalidInputError(
            "training.dense_base: a base in nf4 has no dense copy while training; leave it out, or take "
            "adapter.quantization: int4"
        )
    if find_spec("bitsandbytes") is None:
        raise PreconditionError(
            "adapter.quantization: nf4 needs the package bitsandbytes, which is not installed: pip install "
            f"bitsandbytes, or {_WAY_OUT}",
            reason="PACKAGE_MISSING",
        )


def replace_linears(base: TrainingBase) -> None:
    """Puts an NF4 layer in the place of every int4 layer of the model, on the base's device."""
    found = [(name, layer) for name, layer in base.model.named_modules() if isinstance(layer, Int4Linear)]
    for name, layer in found:
        replace_module(base.model, name, _nf4_linear(layer, base))


def _nf4_linear(layer: Int4Linear, base: TrainingBase) -> nn.Module:
    import bitsandbytes as bnb

    bias = layer._buffers["bias"]
    linear: Any = bnb.nn.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=bias is not None,
        compute_dtype=base.dtype,
        compress_statistics=True,
        quant_type="nf4",
        device="meta",
    )
    # Without a GPU bitsandbytes would pack the weights for inference at the first evaluation, and train through what
    # is packed with gradients that are wrong.
    linear.support_avx512bf16_for_cpu = False
    # Quantized when it moves to its device.
    linear.weight = bnb.nn.Params4bit(
        layer.int4.dequantize(base.dtype).cpu(),
        requires_grad=False,
        compress_statistics=True,
        quant_type="nf4",
        module=linear,
    )
    if bias is not None:
        linear.bias = nn.Parameter(bias.to(base.dtype), requires_grad=False)
    moved: nn.Module = linear.to(base.device)
    return moved
