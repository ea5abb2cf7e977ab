"""Which adapter each row of a batch wears.

Legend for tensor names in this package: T rows (tokens) in the batch, K inputs, N outputs, R the ranks of all active
adapters side by side, G quantization groups, L layers, P virtual tokens, H key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor


class Segments:
    """The rows of one batch, by adapter. Immutable; one is made per step and shared by every site.

    `adapter_of_row[t]` is the index of row t's adapter among the active ones, or `BASE` for a row without one. A loop
    over `for i in active: y[rows(i)] += delta_i(x[rows(i)])` is the meaning of every batched operator.
    """

    BASE = -1

    def __init__(self, adapter_of_row: Sequence[int], device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        rows: dict[int, list[int]] = {}
        for row, index in enumerate(adapter_of_row):
            if index != self.BASE:
                rows.setdefault(index, []).append(row)
        self.num_rows = len(adapter_of_row)
        self.counts = {index: len(found) for index, found in sorted(rows.items())}
        """Rows of each active adapter that has any."""
        self._lists = rows
        self._adapter_of_row = tuple(adapter_of_row)
        self._rows: dict[int, slice | Tensor] = {}
        self._foreign: dict[object, Tensor] = {}

    @cached_property
    def adapter_T(self) -> Tensor:
        """int32 (T,): the adapter of each row, `BASE` for none."""
        return torch.tensor(self._adapter_of_row, dtype=torch.int32, device=self._device)

    def rows(self, index: int) -> slice | Tensor:
        """The rows of adapter `index`: a slice where they are neighbours (no copy), else their indices (int64)."""
        found = self._rows.get(index)
        if found is None:
            rows = self._lists[index]
            neighbours = rows[-1] - rows[0] + 1 == len(rows)
            found = slice(rows[0], rows[-1] + 1) if neighbours else torch.tensor(rows, device=self._device)
            self._rows[index] = found
        return found

    def foreign(self, owner_R: Tensor, layout: object) -> Tensor:
        """bool (T, R): whether rank column r belongs to another adapter than row t's.

        `layout` identifies `owner_R` by value, so that the many sites with one layout share one mask.
        """
        found = self._foreign.get(layout)
        if found is None:
            found = self._foreign[layout] = self.adapter_T[:, None] != owner_R[None, :]
        return found
