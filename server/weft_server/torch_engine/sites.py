"""The stored weights of a linear site: its modules' weights, outputs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from weft_adapters.base.load import StoredBase
from weft_adapters.int4 import Int4Weight
from weft_adapters.kinds.kind import Adapter, LinearSite
from weft_registry.base import BaseSpec


def decoder_sites(spec: BaseSpec, layer: int) -> tuple[LinearSite, LinearSite, LinearSite, LinearSite]:
    """The linear sites of one decoder layer in order of use: attention in and out, MLP in and out."""

    def site(*names: str) -> LinearSite:
        modules = tuple(f"model.layers.{layer}.{name}" for name in names)
        shapes = [spec.linears[module] for module in modules]
        return LinearSite(modules, tuple(n_out for n_out, _ in shapes), shapes[0][1])

    return (
        site("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        site("self_attn.o_proj"),
        site("mlp.gate_proj", "mlp.up_proj"),
        site("mlp.down_proj"),
    )


def site_weight(base: StoredBase, site: LinearSite) -> Int4Weight:
    """The modules' weights as one, their outputs side by side."""
    return stack_weights([base.int4(module) for module in site.modules])


def site_bias(base: StoredBase, site: LinearSite, adapter: Adapter[Any] | None = None) -> Tensor | None:
    """The modules' biases as one, as merging `adapter` makes them; zeros for a module without one; None when none has
    one."""
    biases = [base.bias(module) for module in site.modules]
    if adapter is not None:
        pairs = zip(site.modules, biases, strict=True)
        biases = [None if b is None else adapter.kind.overlay_bias(module, b, adapter) for module, b in pairs]
    if all(bias is None for bias in biases):
        return None
    widths = zip(biases, site.out_features, strict=True)
    return torch.cat([torch.zeros(n_out) if bias is None else bias.float() for bias, n_out in widths])


def stack_dense(weights: Sequence[Int4Weight | Tensor]) -> Tensor:
    """One dense weight whose outputs are those of `weights` side by side."""
    return torch.cat([weight if isinstance(weight, Tensor) else weight.dequantize() for weight in weights])


def stack_weights(weights: Sequence[Int4Weight]) -> Int4Weight:
    """One weight whose outputs are those of `weights` side by side; scales and minima as wide as the widest."""
    if len(weights) == 1:
        return weights[0]
    return Int4Weight(
        torch.cat([weight.codes_NH for weight in weights]),
        torch.cat([weight.scale_NG for weight in weights]),
        torch.cat([weight.minimum_NG for weight in weights]),
    )
