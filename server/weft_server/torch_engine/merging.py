"""Building an overlay: reads the stored base and makes new kernels. Runs beside the step thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from weft_adapters.base.load import StoredBase
from weft_adapters.int4 import Int4Weight
from weft_adapters.kinds.kind import Adapter, LinearSite
from weft_adapters.products import Product
from weft_registry.errors import ExhaustedError
from weft_server.torch_engine.decoder import Decoder
from weft_server.torch_engine.overlay import Overlay
from weft_server.torch_engine.sites import site_bias, stack_weights


@torch.inference_mode()
def build_overlay(base: StoredBase, decoder: Decoder, adapter: Adapter[Any], *, limit_bytes: int) -> Overlay:
    """Merges `adapter` into new kernels, as its kind can: exact int4 weights, or dense ones.

    Raises `MergeRefusedError` where the kind cannot be merged, and `ExhaustedError` once the overlay outgrows
    `limit_bytes`.
    """
    kernels: dict[LinearSite, Product] = {}
    size_bytes = 0
    for layer in decoder.layers:
        for site in layer.sites:
            before = [base.int4(module) for module in site.modules]
            after = [adapter.kind.overlay(m, w, adapter) for m, w in zip(site.modules, before, strict=True)]
            if all(weight is None for weight in after):
                continue
            merged = [old if new is None else new for old, new in zip(before, after, strict=True)]
            kernels[site] = _kernel(base, decoder, site, before, merged)
            size_bytes += kernels[site].size_bytes
            if size_bytes > limit_bytes:
                raise ExhaustedError(
                    f"merging the {adapter.kind.name} adapter {adapter.digest} takes more than the {limit_bytes} bytes "
                    "allowed for merged weights: raise --overlay-memory, or go on serving it unmerged in the batch",
                    reason="OVERLAY_MEMORY",
                    metadata={"limit_bytes": str(limit_bytes), "adapter_digest": adapter.digest},
                )
    return Overlay(adapter, kernels)


def _kernel(
    base: StoredBase,
    decoder: Decoder,
    site: LinearSite,
    before: Sequence[Int4Weight],
    after: Sequence[Int4Weight | Tensor],
) -> Product:
    quantized = [weight for weight in after if isinstance(weight, Int4Weight)]
    if len(quantized) == len(after):
        # Modules that the adapter leaves alone keep their float16 minima; side by side all must be float32.
        wide = [weight.with_minimum(weight.minimum_NG.float()) for weight in quantized]
        return decoder.factory.overlay(decoder.kernel(site), stack_weights(before), stack_weights(wide))
    dense = torch.cat([w if isinstance(w, Tensor) else w.dequantize() for w in after])
    return decoder.factory.dense(dense, site_bias(base, site))
