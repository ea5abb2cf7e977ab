"""States that never change, computed once: the output of the layers below the lowest adapted one.

Where an adapter touches only the top layers, every layer below is the base alone, and so is its output for a given
example. It is computed once per example and kept; a training step then costs only the layers above.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from weft_adapters.base.load import StoredBase
from weft_trainer.data.batches import StateBatches, TokenBatches
from weft_trainer.data.dataset import Example
from weft_trainer.modeling.base import build
from weft_trainer.progress import Reporter

MEMORY_LIMIT_BYTES = 2 << 30
_BATCH = 32


@torch.no_grad()
def cache_states(
    stored: StoredBase,
    first_layer: int,
    dtype: torch.dtype,
    splits: Sequence[Sequence[Example]],
    pad: int,
    scratch: Path,
    report: Reporter,
    *,
    dense: bool = False,
    device: torch.device | str = "cpu",
) -> list[StateBatches]:
    """What enters layer `first_layer` (at least 1) for every example, one `StateBatches` per split.

    More than 2 GiB of states go to a memory-mapped file in `scratch`, which must outlive the result.
    """
    lower = build(stored, dtype, layers=range(first_layer), dense=dense, device=device)
    # The last norm belongs to the whole model, not to its lower part.
    lower.model.model.norm = nn.Identity()
    total = sum(len(split) for split in splits)
    caches: list[StateBatches] = []
    with report.task(f"layers 0-{first_layer - 1}, once", total) as task:
        for number, examples in enumerate(splits):
            offsets = [0, *itertools.accumulate(len(example.ids) for example in examples)]
            states_ND = allocate(offsets[-1], lower.model.config.hidden_size, dtype, scratch / f"states-{number}")
            make_batch = TokenBatches(examples, pad)
            order = sorted(range(len(examples)), key=lambda index: len(examples[index].ids))
            for start in range(0, len(order), _BATCH):
                indices = order[start : start + _BATCH]
                batch = {key: value.to(lower.device) for key, value in make_batch(indices).items()}
                for index, row_TD in zip(indices, lower.hidden(batch), strict=True):
                    length = len(examples[index].ids)
                    states_ND[offsets[index] : offsets[index] + length] = row_TD[:length]
                task.advance(len(indices))
            caches.append(StateBatches(examples, states_ND, offsets))
    return caches


def allocate(rows: int, width: int, dtype: torch.dtype, path: Path) -> torch.Tensor:
    """Room for (rows, width), in memory; over 2 GiB in a memory-mapped file at `path`, which must outlive it."""
    if rows * width * dtype.itemsize <= MEMORY_LIMIT_BYTES:
        return torch.empty(rows, width, dtype=dtype)
    return torch.from_file(str(path), shared=True, size=rows * width, dtype=dtype).view(rows, width)
