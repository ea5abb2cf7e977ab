"""The same requests on both engines in float32, on the real model: how many of their tokens are the same.

64 requests (16 with --quick) over 12 adapters, three of each kind with ranks of 8 to 32, and the base model; prompts of
5 to 61 tokens, 32 new tokens each (12 with --quick), greedy. `tie`: how far apart the torch engine finds the two most
likely tokens where an answer parts from the other's, the largest such distance in nats; float32 rounds differently in
the two, so that a tie of 1e-4 may fall either way.

Run it where vLLM is installed: `.venv-vllm/bin/python -m benchmarks.bench_engines`.
"""

from __future__ import annotations

import queue
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.engines import engine_options
from benchmarks.report import Row, arguments, report
from benchmarks.subjects import RandomAdapter, benchmark_home, random_adapter, real_base
from weft_registry import artifact
from weft_registry.base import BaseSpec
from weft_server.engine import Engine, EngineEvent, EngineRequest, FailEvent, FinishEvent, Sampling, TokenEvent
from weft_server.torch_engine.engine import TorchEngine
from weft_server.vllm_engine.engine import VllmEngine
from weft_server.vllm_engine.options import VllmEngineOptions

KINDS = ("lora", "qalora", "prefix", "prompt")
"""All that vLLM serves; a soft prompt has no rank."""
RANKS = (8, 16, 32)
Answer = list[tuple[int, float]]
"""Each token, and how much likelier than the next likely one it was."""


def main() -> None:
    """Runs the benchmark."""
    args = arguments(__doc__ or "")
    requests, new = (16, 12) if args.quick else (64, 32)
    base = real_base(benchmark_home())
    adapters = [random_adapter(kind, base.spec, seed, rank=rank) for seed, rank in enumerate(RANKS) for kind in KINDS]
    generator = torch.Generator().manual_seed(1)
    prompts = [
        torch.randint(100, base.config.vocab_size, (5 + 7 * i % 63,), generator=generator).tolist()
        for i in range(requests)
    ]
    # The last wearer is the base model.
    wearers = [i % (len(adapters) + 1) for i in range(requests)]
    with TemporaryDirectory(dir=benchmark_home().cache) as name:
        directory = Path(name)
        with closing(TorchEngine(base, engine_options(torch.float32, copies=False))) as engine:
            expected = _answers(engine, adapters, base.spec, directory / "torch", prompts, wearers, new)
        options = VllmEngineOptions(
            cache=directory, dtype="float32", kv_bytes=1 << 30, max_active_adapters=len(adapters)
        )
        with closing(VllmEngine(base, options)) as engine:
            found = _answers(engine, adapters, base.spec, directory / "vllm", prompts, wearers, new)
    rows = []
    for kind in ("base", *KINDS):
        chosen = [i for i, w in enumerate(wearers) if kind == ("base" if w == len(adapters) else adapters[w].kind)]
        equal = [_equal(expected[i], found[i]) for i in chosen]
        whole = sum(count == new for count in equal)
        rows.append(Row(f"{kind}: answers that are the same", 100 * whole / len(chosen), "%"))
        rows.append(Row(f"{kind}: tokens up to where they part", 100 * sum(equal) / (new * len(chosen)), "%"))
        ties = [expected[i][count][1] for i, count in zip(chosen, equal, strict=True) if count < new]
        if ties:
            rows.append(Row(f"{kind}: tie", max(ties), "nats"))
    report(
        f"Both engines in float32, SmolLM2-135M int4: {requests} requests, 12 adapters and the base", rows, args.json
    )


def _answers(
    engine: Engine,
    adapters: Sequence[RandomAdapter],
    spec: BaseSpec,
    directory: Path,
    prompts: Sequence[Sequence[int]],
    wearers: Sequence[int],
    new: int,
) -> list[Answer]:
    """All requests at once. Raises `RuntimeError` if one fails."""
    handles = []
    for index, adapter in enumerate(adapters):
        target = directory / str(index)
        adapter.write(target, spec, f"bench/a{index}")
        manifest = artifact.read(target)
        handles.append(engine.bind(target, manifest, manifest.digest()))
    arrived: queue.Queue[Sequence[EngineEvent]] = queue.Queue()
    engine.start(arrived.put)
    for index, (prompt, wearer) in enumerate(zip(prompts, wearers, strict=True)):
        handle = handles[wearer] if wearer < len(handles) else None
        engine.submit(EngineRequest(str(index), tuple(prompt), handle, Sampling(), new, 0, frozenset(), 2))
    answers: list[Answer] = [[] for _ in prompts]
    left = len(prompts)
    while left:
        for event in arrived.get(timeout=300):
            if isinstance(event, FailEvent):
                raise RuntimeError(f"a request failed: {event.error}")
            if isinstance(event, TokenEvent):
                assert event.logprobs is not None
                (_, first), (_, second) = event.logprobs.top
                answers[int(event.request_id)].append((event.token_id, first - second))
            left -= isinstance(event, FinishEvent)
    return answers


def _equal(expected: Answer, found: Answer) -> int:
    """Tokens before the first that differs."""
    pairs = enumerate(zip(expected, found, strict=True))
    return next((index for index, (ours, theirs) in pairs if ours[0] != theirs[0]), len(expected))


if __name__ == "__main__":
    main()
