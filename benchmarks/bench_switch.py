"""Merging, unmerging and switching between merged adapters, in time and in steps, beside PEFT's merge and unmerge."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.engines import Runner, engine_options, native_library_of
from benchmarks.peft_process import PeftProcess
from benchmarks.report import Row, arguments, median_and_spread, report
from benchmarks.subjects import benchmark_home, random_adapter, real_base
from weft_adapters.kinds.kind import Adapter
from weft_server.engine import MergeOutcome
from weft_server.torch_engine.engine import TorchEngine

HOT, STREAMS = 4, 8
PROMPT_TOKENS, NEW_TOKENS = 16, 128
ALONE_S = 0.5


def main() -> None:
    """Runs the benchmark."""
    args = arguments(__doc__ or "")
    repeats = 3 if args.quick else 15
    base = real_base(benchmark_home())
    qalora = [random_adapter("qalora", base.spec, seed).bound(torch.bfloat16) for seed in range(HOT)]
    lora = random_adapter("lora", base.spec, 1).bound(torch.bfloat16)
    engine = TorchEngine(base, engine_options(native=native_library_of(base)))
    runner = Runner(engine)
    peer = PeftProcess(2)
    values: dict[str, list[float]] = {}

    def note(metric: str, value: float) -> None:
        values.setdefault(metric, []).append(value)

    for _ in range(repeats):
        note("lora_merge_cold_ms", 1e3 * _merge_cold(engine, lora))
        note("lora_unmerge_ms", 1e3 * _seconds(engine.unmerge))
        for adapter in qalora:
            note("qalora_merge_cold_ms", 1e3 * _merge_cold(engine, adapter))
        for adapter in qalora:
            note("qalora_switch_ms", 1e3 * _seconds(lambda: _hot(engine, adapter)))  # noqa: B023 - called at once
        note("qalora_unmerge_ms", 1e3 * _seconds(engine.unmerge))
        merge_s, unmerge_s = peer.switch(1)
        note("peft_merge_ms", 1e3 * merge_s)
        note("peft_unmerge_ms", 1e3 * unmerge_s)
        note("peft_switch_ms", 1e3 * (merge_s + unmerge_s))
    peer.close()
    # Every other stream wears one of the adapters, so that steps have merged rows, others' and the base's own.
    wearers = [qalora[index // 2] if index % 2 else None for index in range(STREAMS)]
    unworn = [random_adapter("qalora", base.spec, HOT + seed).bound(torch.bfloat16) for seed in range(HOT)]
    with _streams(runner, wearers, base.config.vocab_size):
        for _ in range(repeats):
            for adapter in qalora:
                begin = time.perf_counter()
                outcome = _hot(engine, adapter)
                note("qalora_switch_busy_ms", 1e3 * (time.perf_counter() - begin))
                note("qalora_switch_steps", outcome.switch_steps)
            engine.unmerge()
            note("decode_rate", _rate(engine, lambda: time.sleep(ALONE_S)))
            note("decode_rate_building_qalora", _rate(engine, lambda: [_merge_cold(engine, a) for a in unworn]))
            note("decode_rate_building_lora", _rate(engine, lambda: _merge_cold(engine, lora)))
            engine.unmerge()
    overlay_bytes, base_bytes = engine.overlays[qalora[0].digest], engine.base_bytes
    engine.close()
    rows = [
        Row("qalora_switch_steps", max(values["qalora_switch_steps"]), "steps"),
        _row(values, "qalora_switch_ms", "ms", "peft_switch_ms"),
        _row(values, "qalora_switch_busy_ms", "ms", "peft_switch_ms"),
        _row(values, "qalora_unmerge_ms", "ms", "peft_unmerge_ms"),
        _row(values, "qalora_merge_cold_ms", "ms", "peft_merge_ms"),
        _row(values, "lora_unmerge_ms", "ms", "peft_unmerge_ms"),
        _row(values, "lora_merge_cold_ms", "ms", "peft_merge_ms"),
        _row(values, "peft_merge_ms", "ms"),
        _row(values, "peft_unmerge_ms", "ms"),
        _row(values, "peft_switch_ms", "ms"),
        _row(values, "decode_rate", "tokens/s"),
        _row(values, "decode_rate_building_qalora", "tokens/s", "decode_rate"),
        _row(values, "decode_rate_building_lora", "tokens/s", "decode_rate"),
        Row("qalora_overlay_bytes", overlay_bytes, "bytes", "base_bytes", overlay_bytes / base_bytes),
        Row("base_bytes", base_bytes, "bytes"),
    ]
    title = (
        f"Merging, rank 8 on all linears, SmolLM2-135M: {HOT} QA-LoRA kept ready, switched between; {STREAMS} streams "
        "where it says busy or building; the largest number of steps of any switch"
    )
    report(title, rows, args.json)


def _merge_cold(engine: TorchEngine, adapter: Adapter[Any]) -> float:
    """Seconds of a merge that has to build its weights, until they are in force."""
    merged = engine.merged
    if merged is not None and merged.digest == adapter.digest:
        engine.unmerge()
    engine.release(adapter)
    begin = time.perf_counter()
    outcome = engine.merge(adapter)
    if outcome.hot:
        raise RuntimeError("the merged weights of a released adapter were still there")
    return time.perf_counter() - begin


def _hot(engine: TorchEngine, adapter: Adapter[Any]) -> MergeOutcome:
    outcome = engine.merge(adapter)
    if not outcome.hot:
        raise RuntimeError("merged weights that were to be kept ready had to be built")
    return outcome


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _rate(engine: TorchEngine, call: Callable[[], object]) -> float:
    """Tokens a second that the streams get while `call` runs."""
    before = engine.stats().generated_tokens
    seconds = _seconds(call)
    return (engine.stats().generated_tokens - before) / seconds


@contextmanager
def _streams(runner: Runner, wearers: Sequence[Adapter[Any] | None], vocabulary: int) -> Iterator[None]:
    """Streams that decode until the context ends, each through its own adapter."""
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(0, vocabulary, (len(wearers), PROMPT_TOKENS), generator=generator).tolist()
    enough = threading.Event()

    def decode() -> None:
        while not enough.is_set():
            runner.run(prompts, wearers, NEW_TOKENS)

    with ThreadPoolExecutor(1) as pool:
        runner.run(prompts, wearers, 2)
        decoding = pool.submit(decode)
        try:
            yield
        finally:
            enough.set()
            decoding.result()


def _row(values: dict[str, list[float]], metric: str, unit: str, baseline: str = "") -> Row:
    value, spread = median_and_spread(values[metric])
    ratio = value / median_and_spread(values[baseline])[0] if baseline else None
    return Row(metric, value, unit, baseline, ratio, spread)


if __name__ == "__main__":
    main()
