"""PEFT in a process of its own, holding the same random adapters over the same base."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any


class PeftProcess:
    """One PEFT model with `count` LoRA adapters of seeds 0, 1, ..., chosen per row with `adapter_names`."""

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, count), daemon=True)
        self._process.start()
        self._connection.recv()

    def generate(self, prompts: Sequence[Sequence[int]], adapters: Sequence[int], new: int) -> list[list[int]]:
        """Greedy tokens of equally long prompts, each row with its own adapter."""
        self._connection.send((list(prompts), list(adapters), new))
        tokens: list[list[int]] = self._connection.recv()
        return tokens

    def switch(self, adapter: int) -> tuple[float, float]:
        """Seconds of merging an adapter into the weights in place, and of unmerging it by subtraction."""
        self._connection.send(adapter)
        merge_s, unmerge_s = self._connection.recv()
        return float(merge_s), float(unmerge_s)

    def close(self) -> None:
        """Ends the process."""
        self._connection.send(None)
        self._process.join()


def _serve(connection: Connection, count: int) -> None:
    import torch

    from benchmarks.oracles import peft_generate, peft_model
    from benchmarks.subjects import benchmark_home, random_adapter, real_base

    base = real_base(benchmark_home())
    model = peft_model(base, [random_adapter("lora", base.spec, seed) for seed in range(count)], torch.bfloat16)
    connection.send(None)
    while (asked := connection.recv()) is not None:
        connection.send(_switch(model, asked) if isinstance(asked, int) else peft_generate(model, *asked))


def _switch(model: Any, adapter: int) -> tuple[float, float]:
    begin = time.perf_counter()
    model.merge_adapter([f"a{adapter}"])
    merged = time.perf_counter()
    model.unmerge_adapter()
    return merged - begin, time.perf_counter() - merged
