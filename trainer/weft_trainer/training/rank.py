"""Which of the processes that train together this one is, and what they settle between them. Starts none of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Rank:
    """One process of `count`. They hold the same parameters, and take every step together."""

    index: int = 0
    count: int = 1

    @property
    def writes(self) -> bool:
        """Whether this is the process that writes: artifact, checkpoints, logs, progress."""
        return self.index == 0

    def device(self) -> torch.device:
        """Where it computes: a GPU of its own, or the CPU."""
        return torch.device("cuda", self.index) if torch.cuda.is_available() else torch.device("cpu")

    def barrier(self) -> None:
        """Waits until every process is here."""
        if self.count > 1:
            dist.barrier()

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process. Every process asks at the same place."""
        if self.count == 1:
            return flag
        shared = torch.tensor([int(flag)], device=self.device())
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return bool(shared.item())

    def mean(self, value: torch.Tensor) -> float:
        """The mean over the processes of a scalar that is on this one's device. Every process asks at the same
        place."""
        if self.count == 1:
            return float(value)
        shared = value.clone()
        dist.all_reduce(shared)
        return float(shared) / self.count


ALONE = Rank()
"""The only process."""
