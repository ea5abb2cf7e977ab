"""PEFT in a process of its own, holding the same random adapters over the same base."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection


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
        connection.send(peft_generate(model, *asked))
