"""What the stepper asks of a decoder, whatever computes inside it.

There is one over torch, for every device and dtype, which is also the reference; others may stand beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from weft_adapters.int4 import Int4Weight
from weft_adapters.kinds.kind import Adapter, LinearSite
from weft_server.torch_engine.batch import StepBatch
from weft_server.torch_engine.deltas import ActiveAdapters
from weft_server.torch_engine.kv_cache import KvStore
from weft_server.torch_engine.logits import Logits
from weft_server.torch_engine.overlay import MergedKernel, Overlay


class Decoder(Protocol):
    """The base model in memory, and its key-value cache. Only the step thread calls `new_cache` and `forward`."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights."""
        ...

    @property
    def sites(self) -> Sequence[LinearSite]:
        """The linear sites in order of use."""
        ...

    def new_cache(self, limit_bytes: int) -> KvStore:
        """An empty cache of at most `limit_bytes`; from now on `forward` reads and writes it, and not the one before.

        Raises `InvalidInputError` when not even one block fits.
        """
        ...

    def forward(self, step: StepBatch, adapters: ActiveAdapters, overlay: Overlay | None) -> Logits:
        """Runs one step, writing its keys and values to the cache.

        Row by row the meaning is a transformer with that row's own adapter. `overlay` must be the merged adapter's
        when `step.num_merged` is above 0.
        """
        ...

    def adopt(self, adapter: Adapter[Any]) -> Adapter[Any]:
        """The same adapter in the memory order that `forward` reads, or as it is. Called beside running steps; an
        adapter that was not adopted is computed with all the same."""
        ...

    def merged(
        self,
        site: LinearSite,
        before: Sequence[Int4Weight],
        after: Sequence[Int4Weight | Tensor],
        bias_N: Tensor | None,
    ) -> MergedKernel:
        """The kernel of a site whose modules' stored weights are `before` and merged ones `after`, as this decoder's
        `forward` takes it in an overlay. Called beside running steps.

        Where all of `after` are `Int4Weight`s they differ from `before` in their minima only.
        """
        ...
