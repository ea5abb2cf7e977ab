"""Many fusions at the end of one sublayer, in one batch.

    for i:  y[rows(i)] += fused_i(z[rows(i)])        z by `reads_i`

Thin fusions that read the same lie side by side, as networks do in `bottleneck_network`; square ones are computed one
after the other.

Legend: as in `fused_networks`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weft_adapters.kinds.bottleneck_network import add_rows, read
from weft_adapters.kinds.fused_networks import Square, Thin
from weft_adapters.segments import Segments

# As in `bottleneck_network`, for the small calls of a fusion, of which there are more: about 200 us on one core.
_CALL_FLOPS = 4.0e7


@dataclass(frozen=True, eq=False)
class ThinStack:
    """Thin fusions that read the same, by adapter index. Two ways compute them, the same up to rounding: all at once,
    masked, or each over its own rows."""

    fusions: dict[int, Thin]
    together: Thin
    owner_Y: Tensor
    """int32: the adapter index that owns each row of `together.write_YE`."""
    layout: tuple[tuple[int, int], ...]
    """`owner_Y` as (adapter, rows) runs: its identity by value."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the stack; one fusion alone is no copy."""
        return self.together.size_bytes if len(self.fusions) > 1 else 0

    def apply(self, input_TE: Tensor, residual_TE: Tensor, y_TE: Tensor, segments: Segments) -> None:
        """See `SublayerPack.apply`."""
        present = [index for index in self.fusions if index in segments.counts]
        if not present:
            return
        if len(self.fusions) > 1 and self._wasted_flops(segments) <= _CALL_FLOPS * len(present):
            z_TE = read(self.together.reads, input_TE, residual_TE, y_TE, self.together.dtype)
            y_TE += self.together.delta(z_TE, segments.foreign(self.owner_Y, self.layout))
            return
        for index in present:
            _apply_alone(self.fusions[index], segments.rows(index), input_TE, residual_TE, y_TE)

    def _wasted_flops(self, segments: Segments) -> float:
        """What the large products compute only to mask it away."""
        hidden = self.together.read_XE.shape[1]
        useful = sum(segments.counts.get(index, 0) * _columns(one) for index, one in self.fusions.items())
        return 2.0 * hidden * (segments.num_rows * _columns(self.together) - useful)


@dataclass(frozen=True, eq=False)
class FusionPack:
    """The active fusions at one sublayer. Implements `weft_adapters.kinds.kind.SublayerPack`."""

    stacks: tuple[ThinStack, ...]
    squares: dict[int, Square]
    """By adapter index, each over its own rows: of products of the hidden size squared nothing can be shared."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the stacks."""
        return sum(stack.size_bytes for stack in self.stacks)

    def apply(self, input_TE: Tensor, residual_TE: Tensor, y_TE: Tensor, segments: Segments) -> None:
        """See `SublayerPack.apply`."""
        for stack in self.stacks:
            stack.apply(input_TE, residual_TE, y_TE, segments)
        for index, square in self.squares.items():
            if index in segments.counts:
                _apply_alone(square, segments.rows(index), input_TE, residual_TE, y_TE)


def pack_fusions(found: Mapping[int, Thin | Square]) -> FusionPack | None:
    """Stacks the fusions at one sublayer, by adapter index; None when there are none."""
    by_reads: dict[str, dict[int, Thin]] = {}
    for index, one in found.items():
        if isinstance(one, Thin):
            by_reads.setdefault(one.reads, {})[index] = one
    squares = {index: one for index, one in found.items() if isinstance(one, Square)}
    return FusionPack(tuple(_stack(fusions) for fusions in by_reads.values()), squares) if found else None


def _apply_alone(
    fused: Thin | Square, rows: slice | Tensor, input_TE: Tensor, residual_TE: Tensor, y_TE: Tensor
) -> None:
    """One fusion over its own rows, in place."""
    z_TE = read(fused.reads, input_TE[rows], residual_TE[rows], y_TE[rows], fused.dtype)
    add_rows(y_TE, rows, fused.delta(z_TE))


def _stack(fusions: dict[int, Thin]) -> ThinStack:
    thin = list(fusions.values())
    layout = tuple((index, one.width) for index, one in fusions.items())
    layout += tuple((index, len(one.parts)) for index, one in fusions.items())
    owner_Y = torch.tensor([i for i, n in layout for _ in range(n)], dtype=torch.int32, device=thin[0].read_XE.device)
    if len(thin) == 1:
        return ThinStack(fusions, thin[0], owner_Y, layout)
    together = Thin(
        thin[0].reads,
        tuple(part for one in thin for part in one.parts),
        _side_by_side([(one.read_XE, (one.width, one.width, len(one.parts))) for one in thin]),
        _side_by_side([(one.read_X, (one.width, one.width, len(one.parts))) for one in thin]),
        _side_by_side([(one.write_YE, (one.width, len(one.parts))) for one in thin]),
    )
    return ThinStack(fusions, together, owner_Y, layout)


def _side_by_side(pieces: Sequence[tuple[Tensor, tuple[int, ...]]]) -> Tensor:
    """The first section of every tensor, then the second of every one, and so on."""
    split = [torch.split(tensor, list(sizes)) for tensor, sizes in pieces]
    return torch.cat([section for sections in zip(*split, strict=True) for section in sections])


def _columns(thin: Thin) -> int:
    """Rows of all its matrices: what one row of a batch costs, over twice the hidden size."""
    return thin.read_XE.shape[0] + thin.write_YE.shape[0]
