"""Which rows of a step wear an adapter that reads whole inputs, and which one that reads pooled ones.

Legend: T rows of a step, R those of them that wear an adapter over whole inputs, r rank, n a layer's fused modules.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class WornRows:
    """What the layers know of a step. The manager updates it before the step; every layer reads it in turn.

    Its flags are read by Python in every step, which is why pooled slots are for layers that run eagerly.
    """

    def __init__(self, lora_slots: int, max_tokens: int, max_batches: int, device: torch.device, lora_config: Any):
        """`max_tokens` and `max_batches`: rows and requests of a step, at most."""
        from vllm.lora.punica_wrapper import get_punica_wrapper

        self._lora_slots = lora_slots
        self._device = device
        config = copy.copy(lora_config)
        config.max_loras = lora_slots
        self.whole: Any = get_punica_wrapper(max_tokens, max_batches=max_batches, device=device, lora_config=config)
        """vLLM's kernels over the slots that have an A for whole inputs, for the R rows that wear one."""
        self._whole_R: Tensor | None = None
        """Those rows; None for all."""
        self.any_whole = False
        self.any_pooled = False

    def update(
        self, mapping: Any, index_to_id: Sequence[int | None], reads_whole: Callable[[int], bool], vocab_size: int
    ) -> None:
        """Takes the adapters of a step's rows and requests (vLLM's `LoRAMapping`), and who is in which slot."""
        worn = set(mapping.index_mapping)
        whole = {lora_id for lora_id in worn if lora_id > 0 and reads_whole(lora_id)}
        self.any_whole = bool(whole)
        self.any_pooled = any(lora_id > 0 for lora_id in worn - whole)
        if not whole:
            return
        rows = [row for row, lora_id in enumerate(mapping.index_mapping) if lora_id in whole]
        all_of_them = len(rows) == len(mapping.index_mapping)
        self._whole_R = None if all_of_them else torch.tensor(rows, device=self._device)
        theirs = {
            field: tuple(lora_id for lora_id in getattr(mapping, field) if lora_id in whole)
            for field in ("index_mapping", "prompt_mapping")
        }
        slots = list(index_to_id[: self._lora_slots])
        self.whole.update_metadata(dataclasses.replace(mapping, **theirs), slots, self._lora_slots + 1, vocab_size)

    def take(self, x_TK: Tensor) -> Tensor:
        """The inputs of the R rows."""
        return x_TK if self._whole_R is None else x_TK[self._whole_R]

    def put(self, whole_nRr: Tensor, others_nTr: Tensor) -> Tensor:
        """What the R rows shrank to, among what the others did: (n, T, r)."""
        return whole_nRr if self._whole_R is None else others_nTr.index_copy_(1, self._whole_R, whole_nRr)
