"""Building an overlay: reads the stored base and makes new kernels. Runs beside the step thread, site by site."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from weft_adapters.base.load import StoredBase
from weft_adapters.kinds.kind import Adapter, LinearSite
from weft_server.torch_engine.decoders import Decoder
from weft_server.torch_engine.overlay import MergedKernel, Overlay
from weft_server.torch_engine.sites import site_bias


@torch.inference_mode()
def build_overlay(
    base: StoredBase,
    decoder: Decoder,
    adapter: Adapter[Any],
    *,
    reserve: Callable[[int], None] = lambda size_bytes: None,
    busy: Callable[[], bool] = lambda: False,
) -> Overlay:
    """Merges `adapter` into new kernels, as its kind can: exact int4 weights, or dense ones.

    `reserve` is told the bytes of the overlay each time they have grown, and may raise to end it. While `busy` says
    that steps are running, every site is followed by a rest as long as it took.

    Raises `MergeRefusedError` where the kind cannot be merged, and what `reserve` raises.
    """
    kernels: dict[LinearSite, MergedKernel] = {}
    size_bytes = 0
    for site in decoder.sites:
        begin = time.perf_counter()
        before = [base.int4(module) for module in site.modules]
        after = [adapter.kind.overlay(m, w, adapter) for m, w in zip(site.modules, before, strict=True)]
        if all(weight is None for weight in after):
            continue
        merged = [old if new is None else new for old, new in zip(before, after, strict=True)]
        kernels[site] = decoder.merged(site, before, merged, site_bias(base, site, adapter))
        size_bytes += kernels[site].size_bytes
        reserve(size_bytes)
        if busy():
            # A step's products wait for the slower of their threads: without rests the core that builds holds up every
            # step for as long as building takes; with them, half as much for twice as long.
            time.sleep(time.perf_counter() - begin)
    return Overlay(adapter, kernels)
