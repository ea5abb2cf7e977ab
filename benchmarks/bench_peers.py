"""The same batches on Weft and on other engines: PEFT, vLLM's CPU build and llama.cpp, over the same base model.

64 prompt tokens and 64 new ones (16 and 12 with --quick), greedy, past the end token; no prompt comes twice. With
`lora8` every row wears one of 8 LoRA adapters of rank 8 on all linears, `base` is the model alone. For every engine
alike, a row's value is the rate of decoding: what the new tokens after the first took, measured as the time of the
whole run less the time of a run for one new token; rows with `_whole` count all new tokens over the whole time. Every
repeat runs all engines, one after the other, on the same prompts, and ratios are the median over the repeats.

`base`, PEFT and vLLM compute in bfloat16: PEFT and vLLM with the base's dequantized weights, Weft with its int4.
llama.cpp runs the file that the base was imported from (Q4_1, the same numbers) and that file as Q4_0, which drops the
minima. An engine that is not installed is skipped, and named on standard error with what installs it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks import peer_files
from benchmarks.engines import Runner, engine_options, native_library_of
from benchmarks.peer_process import PeerProcess
from benchmarks.peers_table import BATCHES, COMPARISONS, CONTEXT, NUM_ADAPTERS, PEERS, RANK, THREADS, Peer
from benchmarks.report import arguments, report
from benchmarks.samples import Prompts, Samples
from benchmarks.subjects import benchmark_home, random_adapter, real_base
from weft_server.torch_engine.engine import TorchEngine

SETTLE_S = 0.3
"""Between two engines: worker threads of the one before may still spin for a moment."""

ATTEMPTS = 3
"""At a pair of times of which the shorter run took longer."""

Batch = list[list[int]]
Generate = Callable[[Sequence[Sequence[int]], int], float]
"""Runs a batch for so many new tokens each, and answers the seconds."""


def main() -> None:
    """Runs the benchmark."""
    args = arguments(__doc__ or "")
    prompt, new, repeats = (16, 12, 1) if args.quick else (64, 64, 5)
    samples = Samples()
    with ExitStack() as stack:
        engines, vocabulary = _start(stack)
        prompts = Prompts(vocabulary, seed=2)
        for batch in BATCHES:
            present = {name: run for (name, size), run in engines.items() if size == batch}
            for run in present.values():
                run(prompts.batch(batch, 8), 2)
            for _ in range(repeats):
                _repeat(
                    samples,
                    present,
                    batch,
                    [(prompts.batch(batch, prompt), prompts.batch(batch, prompt)) for _ in range(ATTEMPTS)],
                    new,
                )
    rows = [samples.row(f"{name}_b{batch}{suffix}", "tokens/s") for name, batch in engines for suffix in ("", "_whole")]
    for c in COMPARISONS:
        if (c.peer, c.batch) in engines:
            rows += [samples.row(c.metric + s, "tokens/s", f"{c.peer}_b{c.batch}{s}") for s in ("", "_whole")]
    report(f"Peers, SmolLM2-135M, {prompt} + {new} tokens, {THREADS} threads", rows, args.json)


def _repeat(
    samples: Samples, engines: dict[str, Generate], batch: int, prompts: Sequence[tuple[Batch, Batch]], new: int
) -> None:
    rates: dict[str, tuple[float, float]] = {}
    for name, run in engines.items():
        time.sleep(SETTLE_S)
        first_s, whole_s = _times(run, prompts, new)
        rates[name] = batch * (new - 1) / (whole_s - first_s), batch * new / whole_s
        for suffix, rate in zip(("", "_whole"), rates[name], strict=True):
            samples.add(f"{name}_b{batch}{suffix}", rate)
    for c in COMPARISONS:
        if c.batch == batch and c.peer in rates:
            pairs = zip(("", "_whole"), rates[f"weft_{c.ours}"], rates[c.peer], strict=True)
            for suffix, ours, theirs in pairs:
                samples.add(c.metric + suffix, ours, theirs)


def _times(run: Generate, prompts: Sequence[tuple[Batch, Batch]], new: int) -> tuple[float, float]:
    """Seconds for one new token and for all. Raises `RuntimeError` if the machine never lets one token be quicker."""
    # Never the same prompts again, or a run could find the keys and values of the one before.
    for for_first, for_whole in prompts:
        first_s, whole_s = run(for_first, 1), run(for_whole, new)
        if first_s < whole_s:
            return first_s, whole_s
        print(f"disturbed: 1 token took {first_s:.2f} s, {new} took {whole_s:.2f} s; once more", file=sys.stderr)
    raise RuntimeError(
        f"one token took longer than all of them, {ATTEMPTS} times: something else is using this machine"
    )


def _start(stack: ExitStack) -> tuple[dict[tuple[str, int], Generate], int]:
    """Every engine that is here, by name and batch size, and the size of the vocabulary."""
    home = benchmark_home()
    base = real_base(home)
    adapters = [random_adapter("lora", base.spec, seed, rank=RANK) for seed in range(NUM_ADAPTERS)]
    directory = Path(stack.enter_context(TemporaryDirectory()))
    paths = [str(path) for path in peer_files.peft_directories(directory, base, adapters)]
    checkpoint, gguf = str(peer_files.checkpoint(home, base)), str(peer_files.gguf(home))
    started: list[tuple[Peer, PeerProcess]] = []
    for peer in PEERS:
        if not peer.installed:
            print(f"skipped: {peer.name} is not installed; `{peer.target}` installs it", file=sys.stderr)
            continue
        settings: dict[str, Any] = {
            "model": gguf if peer.module == "llamacpp_peer" else checkpoint,
            "adapters": paths if peer.adapters else [],
            "rank": RANK,
            "threads": THREADS,
            "batch": max(peer.batches),
            "context": CONTEXT,
            "cache": str(home.cache / "peers"),
            **peer.settings,
        }
        process = PeerProcess(peer.python, peer.module, settings, peer.environment)
        stack.callback(process.close)
        started.append((peer, process))
    begin = time.perf_counter()
    for peer, process in started:
        about = process.wait_ready()
        print(f"{peer.name}: ready after {time.perf_counter() - begin:.0f} s, {about}", file=sys.stderr)
    bound = [adapter.bound(torch.bfloat16) for adapter in adapters]
    engine = TorchEngine(base, engine_options(native=native_library_of(base)))
    stack.callback(engine.close)
    runner = Runner(engine)

    def weft(lora: bool) -> Generate:
        def run(prompts: Sequence[Sequence[int]], new: int) -> float:
            wearers = [bound[row % NUM_ADAPTERS] if lora else None for row in range(len(prompts))]
            begin = time.perf_counter()
            runner.run(prompts, wearers, new)
            return time.perf_counter() - begin

        return run

    def other(peer: Peer, process: PeerProcess) -> Generate:
        def run(prompts: Sequence[Sequence[int]], new: int) -> float:
            names = [row % NUM_ADAPTERS if peer.adapters else None for row in range(len(prompts))]
            tokens, seconds = process.generate(prompts, names, new)
            if [len(row) for row in tokens] != [new] * len(prompts):
                raise RuntimeError(f"{peer.name} did not answer {new} tokens to each of {len(prompts)} prompts")
            return seconds

        return run

    engines: dict[tuple[str, int], Generate] = {}
    for batch in BATCHES:
        engines["weft_base", batch] = weft(lora=False)
        engines["weft_lora8", batch] = weft(lora=True)
        engines |= {(peer.name, batch): other(peer, p) for peer, p in started if batch in peer.batches}
    return engines, base.config.vocab_size


if __name__ == "__main__":
    main()
