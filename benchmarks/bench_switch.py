"""Merging, unmerging and switching between adapters, beside PEFT's merge and unmerge on the same weights."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks.engines import Runner, engine_options
from benchmarks.oracles import peft_model
from benchmarks.report import Row, arguments, median_and_spread, report
from benchmarks.subjects import benchmark_home, random_adapter, real_base
from weft_server.torch_engine.engine import TorchEngine


def main() -> None:
    """Runs the benchmark."""
    args = arguments(__doc__ or "")
    repeats = 3 if args.quick else 9
    base = real_base(benchmark_home())
    kinds = ("qalora", "lora")
    adapters = {kind: random_adapter(kind, base.spec, 1) for kind in kinds}
    bound = {kind: adapter.bound(torch.bfloat16) for kind, adapter in adapters.items()}
    engine = TorchEngine(base, engine_options())
    Runner(engine)
    peer = peft_model(base, [adapters["lora"]], torch.bfloat16)
    times: dict[str, list[float]] = {}

    def note(name: str, seconds: float) -> None:
        times.setdefault(name, []).append(1e3 * seconds)

    for _ in range(repeats):
        for kind in kinds:
            outcome = engine.merge(bound[kind])
            note(f"{kind}: build merged weights beside the running engine", outcome.build_s)
            note(f"{kind}: swap them in between two steps", outcome.switch_s)
            note(f"{kind}: unmerge", engine.unmerge())
        note("PEFT LoRA: merge in place", _timed(peer.merge_adapter))
        note("PEFT LoRA: unmerge by subtraction", _timed(peer.unmerge_adapter))
    engine.close()
    rows = []
    for name, values in times.items():
        value, spread = median_and_spread(values)
        rows.append(Row(name, value, "ms", spread=spread))
    report("Merge and unmerge, rank 8 on all linears, SmolLM2-135M", rows, args.json)


def _timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
