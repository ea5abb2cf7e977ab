"""What a decoder says about the next tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Logits:
    """The logits of the rows of a step that wanted them, with each row's greedy choice. Not kept: the next step may
    write over them. Legend: S rows, V vocabulary."""

    logits_SV: Tensor
    """float32."""
    best_S: Tensor
    """float32: the largest logit, not finite when any of the row's is NaN."""
    token_S: Tensor
    """int64: where it is."""

    @classmethod
    def of(cls, logits_SV: Tensor) -> Logits:
        """With the greedy choices looked up."""
        # NaN is the maximum of any row that holds one, so one reduction both picks and checks.
        return cls(logits_SV, *logits_SV.max(dim=-1))

    @property
    def finite(self) -> list[bool]:
        """Which rows hold numbers only."""
        found: list[bool] = torch.isfinite(self.best_S).tolist()
        return found

    def forbid(self, row: int, tokens: list[int]) -> Logits:
        """The same where `tokens` cannot be the next one of `row`."""
        self.logits_SV[row, tokens] = float("-inf")
        best, token = self.logits_SV[row].max(dim=-1)
        best_S, token_S = self.best_S.clone(), self.token_S.clone()
        best_S[row], token_S[row] = best, token
        return Logits(self.logits_SV, best_S, token_S)
