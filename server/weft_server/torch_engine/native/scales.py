"""The factors that adapters multiply inputs and outputs of linear sites with, as the native operator finds them.

Legend: P places, two a site: its input, its output; I indices of active adapters; K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weft_adapters.kinds.kind import Adapter, LinearSite
from weft_adapters.scales import adapter_input_scale, adapter_output_scale
from weft_server.torch_engine.deltas import ActiveAdapters
from weft_server.torch_engine.native.layout import ROW_SCALE
from weft_server.torch_engine.native.low_rank import Column


@dataclass(frozen=True, eq=False)
class _Laid:
    """One adapter's factors."""

    column_P: Column
    kept: tuple[Tensor, ...]
    """What the column points at."""


class ScaleTable:
    """The factors of the active adapters. Only the step thread touches it."""

    def __init__(self, sites: Sequence[LinearSite]) -> None:
        self._sites = sites
        self.place = {site: 2 * index for index, site in enumerate(sites)}
        """Where a site's input stands in the table; its output comes next."""
        self._laid: dict[str, _Laid] = {}
        """By digest, as long as the adapter is active."""
        self.table_PI: Column = np.zeros((2 * len(sites), 1), ROW_SCALE)

    @property
    def address(self) -> int:
        """Of the table."""
        return int(self.table_PI.ctypes.data)

    def update(self, active: ActiveAdapters) -> None:
        """Takes over the active adapters."""
        before, self._laid = self._laid, {}
        self.table_PI = np.zeros((2 * len(self._sites), max(1, len(active.adapters))), ROW_SCALE)
        for index, adapter in enumerate(active.adapters):
            if adapter is not None and adapter.kind.scales:
                laid = before.get(adapter.digest) or self._lay_out(adapter)
                self._laid[adapter.digest] = laid
                self.table_PI[:, index] = laid.column_P

    def scaled_inputs(self) -> frozenset[LinearSite]:
        """The sites whose input an active adapter scales."""
        return self._scaled(0)

    def scaled_outputs(self) -> frozenset[LinearSite]:
        """The sites whose output an active adapter scales."""
        return self._scaled(1)

    def _scaled(self, side: int) -> frozenset[LinearSite]:
        return frozenset(site for site, place in self.place.items() if self.table_PI[place + side]["scale"].any())

    def _lay_out(self, adapter: Adapter[Any]) -> _Laid:
        column_P, kept = np.zeros(2 * len(self._sites), ROW_SCALE), []

        def address(factors: Tensor) -> int:
            kept.append(factors.to(torch.float32).contiguous())
            return int(kept[-1].data_ptr())

        for site, place in self.place.items():
            scale_K, output = adapter_input_scale(adapter, site), adapter_output_scale(adapter, site)
            if scale_K is not None:
                column_P[place]["scale"] = address(scale_K)
            if output is not None:
                column_P[place + 1]["scale"] = address(output.scale_N)
                if output.shift_N is not None:
                    column_P[place + 1]["shift"] = address(output.shift_N)
        return _Laid(column_P, tuple(kept))
