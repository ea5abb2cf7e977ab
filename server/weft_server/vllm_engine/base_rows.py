"""Rows of the base model in a batch with adapters: a test of vLLM's kernels, and the mending of those that fail it.

vLLM gives a row without an adapter the slot -1. The CPU kernels of vLLM 0.32 index the stacked weights with it, and -1
is the LAST slot: once every slot is taken, requests for the base model are answered by whichever adapter is there.
0.33 masks such rows, and so does `patch`. The test asks the kernels themselves, on every platform, at every start.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_MODULES = (
    "vllm.lora.ops.torch_ops.lora_ops",
    "vllm.lora.ops.torch_ops",
    "vllm.lora.punica_wrapper.punica_cpu",
)
_EXPANDS = ("bgmv_expand", "bgmv_expand_slice")


def patch() -> bool:
    """Mends this process's CPU kernels if they need it; answers whether they did. Safe to call again.

    It must come before anything is computed, in the process that computes: vLLM loads the plugin that calls this into
    each of its processes.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return False
    ops: Any = importlib.import_module(_MODULES[0])
    if _masks(ops):
        return False
    mended = {name: _masked(getattr(ops, name)) for name in _EXPANDS}
    for module in map(importlib.import_module, _MODULES):
        for name, function in mended.items():
            if hasattr(module, name):
                setattr(module, name, function)
    return True


def _masks(ops: Any) -> bool:
    """Whether `bgmv_expand` leaves a row without an adapter alone."""
    weights_SNr = torch.ones(1, 2, 1)
    y_BN = torch.zeros(1, 2)
    ops.bgmv_expand(torch.ones(1, 1), weights_SNr, y_BN, torch.tensor([-1]), True)
    return not bool(y_BN.any())


def _masked(expand: Callable[..., None]) -> Callable[..., None]:
    """`expand` with inputs of zero, and some slot that exists, for rows without an adapter."""

    @functools.wraps(expand)
    def masked(inputs: Tensor, weights: Tensor, output: Tensor, indices: Tensor, *rest: Any, **named: Any) -> None:
        without_B = indices < 0
        # The shrunken row may hold anything, NaN included, and zero times that is no zero: it is replaced.
        kept_Br = inputs.masked_fill(without_B[:, None], 0.0)
        expand(kept_Br, weights, output, indices.clamp(min=0), *rest, **named)

    return masked


def base_rows_untouched(lora_config: Any, device: torch.device) -> bool:
    """Whether the kernels that vLLM chose here leave rows of the base model as they are while every slot is taken, in
    prefill and in decoding."""
    from vllm.lora.layers.utils import LoRAMapping
    from vllm.lora.punica_wrapper import get_punica_wrapper

    slots, n_in, n_out = lora_config.max_loras, 64, 64
    rank = lora_config.max_lora_rank
    dtype = lora_config.lora_dtype
    a_S1rK = torch.ones(slots, 1, rank, n_in, dtype=dtype, device=device)
    b_S1Nr = torch.ones(slots, 1, n_out, rank, dtype=dtype, device=device)
    wearers = (0, 1, 0, slots)
    wrapper = get_punica_wrapper(len(wearers), max_batches=len(wearers), device=device, lora_config=lora_config)
    for is_prefill in (True, False):
        wrapper.update_metadata(
            LoRAMapping(wearers, wearers, is_prefill=is_prefill), list(range(1, slots + 1)), slots + 1, 512
        )
        x_BK = torch.ones(len(wearers), n_in, dtype=dtype, device=device)
        y_BN = torch.zeros(len(wearers), n_out, dtype=dtype, device=device)
        wrapper.add_lora_linear(y_BN, x_BK, (a_S1rK,), (b_S1Nr,), 1.0, (n_out,))
        touched = y_BN.ne(0).any(-1).tolist()
        if touched != [wearer > 0 for wearer in wearers]:
            return False
    return True
