"""The batched scale: every row times its own adapter's factors, `x[t] <- scale[i] * x[t] + shift[i]`, i the adapter of
row t; rows of others keep their bits.

(IA)^3 is nothing else; DoRA's magnitudes are a scale over a low-rank delta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weft_adapters.kinds.kind import Adapter, LinearSite, OutputScale
from weft_adapters.segments import Segments


@dataclass(frozen=True, eq=False)
class RowScale:
    """The factors of a batch's adapters at one place."""

    owners: frozenset[int]
    """The indices of the adapters that have factors here."""
    scale_IN: Tensor
    """float32; ones for indices without factors, and in the last row, which stands for the base."""
    shift_IN: Tensor | None
    """float32, zeros likewise; None where nobody shifts."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the factors."""
        return self.scale_IN.nbytes + (0 if self.shift_IN is None else self.shift_IN.nbytes)

    def apply(self, x_TN: Tensor, segments: Segments) -> None:
        """Scales the rows of `x_TN`, in place; computed in float32."""
        present = segments.counts.keys() & self.owners
        if len(present) == 1:
            # The usual case, in one pass over its own rows.
            (index,) = present
            rows = segments.rows(index)
            x_TN[rows] = self._scaled(x_TN[rows], self.scale_IN[index], index)
        elif present:
            x_TN.copy_(self._scaled(x_TN, self.scale_IN[segments.adapter_T], segments.adapter_T))

    def _scaled(self, x_TN: Tensor, scale: Tensor, index: int | Tensor) -> Tensor:
        wide = x_TN.float() * scale
        return wide if self.shift_IN is None else wide + self.shift_IN[index]


def adapter_input_scale(adapter: Adapter[Any], site: LinearSite) -> Tensor | None:
    """(K,): what one adapter multiplies the input of a site with; None where it leaves it alone."""
    if not adapter.kind.scales:
        return None
    found = [(module, adapter.kind.input_scale(adapter, module)) for module in site.modules]
    for module, scale_K in found:
        if scale_K is not None:
            assert len(site.modules) == 1, f"{module} shares its input, which cannot be scaled for it alone"
            return scale_K
    return None


def adapter_output_scale(adapter: Adapter[Any], site: LinearSite) -> OutputScale | None:
    """What one adapter does to the outputs of a site, side by side, in float32; None where it leaves all alone."""
    if not adapter.kind.scales:
        return None
    found = [adapter.kind.output_scale(adapter, module) for module in site.modules]
    present = [scale for scale in found if scale is not None]
    if not present:
        return None
    device = present[0].scale_N.device
    scales, shifts = [], []
    for scale, n_out in zip(found, site.out_features, strict=True):
        shift_N = None if scale is None else scale.shift_N
        scales.append(torch.ones(n_out, device=device) if scale is None else scale.scale_N.float())
        shifts.append(torch.zeros(n_out, device=device) if shift_N is None else shift_N.float())
    shift = torch.cat(shifts) if any(scale.shift_N is not None for scale in present) else None
    return OutputScale(torch.cat(scales), shift)


def output_scales(adapters: Sequence[Adapter[Any] | None], site: LinearSite) -> RowScale | None:
    """What the active adapters do to the outputs of a site; None where none does anything."""
    found = [None if adapter is None else adapter_output_scale(adapter, site) for adapter in adapters]
    return _table(found, sum(site.out_features))


def input_scales(adapters: Sequence[Adapter[Any] | None], site: LinearSite) -> RowScale | None:
    """What the active adapters do to the input of a site; None where none does anything."""
    found = [None if adapter is None else adapter_input_scale(adapter, site) for adapter in adapters]
    return _table([None if scale_K is None else OutputScale(scale_K) for scale_K in found], site.in_features)


def _table(by_index: Sequence[OutputScale | None], width: int) -> RowScale | None:
    found = {index: scale for index, scale in enumerate(by_index) if scale is not None}
    if not found:
        return None
    device = next(iter(found.values())).scale_N.device
    scale_IN = torch.ones(len(by_index) + 1, width, device=device)
    shifts = any(scale.shift_N is not None for scale in found.values())
    shift_IN = torch.zeros(len(by_index) + 1, width, device=device) if shifts else None
    for index, scale in found.items():
        scale_IN[index] = scale.scale_N.float()
        if shift_IN is not None and scale.shift_N is not None:
            shift_IN[index] = scale.shift_N.float()
    return RowScale(frozenset(found), scale_IN, shift_IN)
