"""Decode throughput: the base alone, and 8 distinct LoRA adapters mixed in one batch, beside PEFT's `adapter_names`.

64 prompt tokens and 64 new ones (16 with --quick), greedy, rank 8 on all linears, bfloat16. The rate counts new tokens
over the whole time, prompts included. PEFT runs in a process of its own, so that neither side's worker threads get in
the other's way; repeats are interleaved, and a ratio is the median of the repeats' own ratios.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.engines import Runner, engine_options
from benchmarks.peft_process import PeftProcess
from benchmarks.report import Row, arguments, median_and_spread, report
from benchmarks.subjects import benchmark_home, random_adapter, real_base
from weft_adapters.kinds.kind import Adapter
from weft_server.torch_engine.engine import TorchEngine

PROMPT = 64
NUM_ADAPTERS = 8


def rate(run: Callable[[], object], tokens: int) -> float:
    """Tokens a second of one run."""
    begin = time.perf_counter()
    run()
    return tokens / (time.perf_counter() - begin)


def main() -> None:
    """Runs the benchmark."""
    args = arguments(__doc__ or "")
    new, repeats = (16, 2) if args.quick else (64, 3)
    base = real_base(benchmark_home())
    adapters = [random_adapter("lora", base.spec, seed) for seed in range(NUM_ADAPTERS)]
    bound = [adapter.bound(torch.bfloat16) for adapter in adapters]
    engine = TorchEngine(base, engine_options())
    runner = Runner(engine)
    peer = PeftProcess(NUM_ADAPTERS)
    generator = torch.Generator().manual_seed(0)
    rows: list[Row] = []
    for batch in (1, 8, 32):
        prompts = torch.randint(100, base.config.vocab_size, (batch, PROMPT), generator=generator).tolist()
        wearers: list[Adapter[Any] | None] = [bound[i % NUM_ADAPTERS] for i in range(batch)]
        names = [i % NUM_ADAPTERS for i in range(batch)]
        runs: dict[str, Callable[[], object]] = {
            "base": lambda p=prompts: runner.run(p, [None] * len(p), new),  # type: ignore[misc]
            "lora8": lambda p=prompts, w=wearers: runner.run(p, w, new),  # type: ignore[misc]
            "peft": lambda p=prompts, n=names: peer.generate(p, n, new),  # type: ignore[misc]
        }
        for run in runs.values():
            run()
        samples: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(repeats):
            for name, run in runs.items():
                samples[name].append(rate(run, batch * new))
        rows += _rows(batch, samples)
    engine.close()
    peer.close()
    report(f"Decode throughput, SmolLM2-135M int4, {PROMPT} + {new} tokens", rows, args.json)


def _rows(batch: int, samples: dict[str, list[float]]) -> list[Row]:
    rows = []
    baselines = {"base": None, "lora8": "base", "peft": None, "lora8/peft": "peft"}
    for name, baseline in baselines.items():
        own = name.split("/")[0]
        value, spread = median_and_spread(samples[own])
        ratio = None
        if baseline is not None:
            ratio, spread = median_and_spread([a / b for a, b in zip(samples[own], samples[baseline], strict=True)])
        label = {"base": "base only", "lora8": "8 LoRA mixed", "peft": "PEFT adapter_names, 8 LoRA mixed"}[own]
        rows.append(Row(f"{label}, batch {batch}", value, "tokens/s", baseline or "", ratio, spread))
    return rows


if __name__ == "__main__":
    main()
