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


def output_scales(adapters: Sequence[Adapter[Any] | None], site: LinearSite) -> RowScale | None:
    """What the active adapters do to the outputs of a site; None where none does anything."""
    start = 0
    found: list[tuple[int, slice, OutputScale]] = []
    for module, n_out in zip(site.modules, site.out_features, strict=True):
        outputs = slice(start, start + n_out)
        start = outputs.stop
        for index, adapter in enumerate(adapters):
            scale = adapter and adapter.kind.scales and adapter.kind.output_scale(adapter, module)
            if scale:
                found.append((index, outputs, scale))
    return _table(found, len(adapters), start)


def input_scales(adapters: Sequence[Adapter[Any] | None], site: LinearSite) -> RowScale | None:
    """What the active adapters do to the input of a site; None where none does anything."""
    found: list[tuple[int, slice, OutputScale]] = []
    for index, adapter in enumerate(adapters):
        if adapter is None or not adapter.kind.scales:
            continue
        for module in site.modules:
            scale_K = adapter.kind.input_scale(adapter, module)
            if scale_K is not None:
                assert len(site.modules) == 1, f"{module} shares its input, which cannot be scaled for it alone"
                found.append((index, slice(0, site.in_features), OutputScale(scale_K)))
    return _table(found, len(adapters), site.in_features)


def _table(found: Sequence[tuple[int, slice, OutputScale]], num_adapters: int, width: int) -> RowScale | None:
    if not found:
        return None
    device = found[0][2].scale_N.device
    scale_IN = torch.ones(num_adapters + 1, width, device=device)
    shifts = any(scale.shift_N is not None for _, _, scale in found)
    shift_IN = torch.zeros(num_adapters + 1, width, device=device) if shifts else None
    for index, columns, scale in found:
        scale_IN[index, columns] = scale.scale_N.float()
        if shift_IN is not None and scale.shift_N is not None:
            shift_IN[index, columns] = scale.shift_N.float()
    return RowScale(frozenset(index for index, _, _ in found), scale_IN, shift_IN)
