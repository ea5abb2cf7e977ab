"""What Weft adds to vLLM: `weft serve --engine vllm` over gRPC, beside bare `AsyncLLM` with the same settings.

32 requests at once, 64 prompt and 64 new tokens each (16 with --quick), greedy, over SmolLM2-135M in its own int4.
`base`: without adapters; `lora_8`: eight LoRA adapters (rank 8 on all linears) in turns. The bare side gets the same
token ids and adapters, and reads its tokens in a task for each request, in this process; the other one is a server in a
process of its own, asked by this one through streams, and answers text as well. The sides take turns. `ttft` is the
median time to a first token.

Run it where vLLM is installed: `.venv-vllm/bin/python -m benchmarks.bench_vllm`.
"""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.report import Row, arguments, report
from benchmarks.samples import Prompts, Samples
from benchmarks.serve_homes import Catalog, make_home
from benchmarks.server_process import ServerProcess
from benchmarks.subjects import benchmark_home, real_base
from weft_client.async_inference import AsyncInferenceClient
from weft_registry import artifact
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.transfer import pull
from weft_server.vllm_engine.adapters import VllmAdapter
from weft_server.vllm_engine.engine import VllmEngine
from weft_server.vllm_engine.options import VllmEngineOptions

BATCH, PROMPT, NEW, QUICK_NEW, WARM_NEW = 32, 64, 64, 16, 2
ADAPTERS = 8
RANK = 8
OPTIONS = ("--engine", "vllm", "--kv-memory", "1GiB", "--adapter-memory", "512MiB", "--max-active-adapters", "8")
SETTINGS = ("--vllm", f"max_lora_rank={RANK}")
Timed = tuple[float, float]
"""Tokens a second, and the median time to a first token."""


class Bare:
    """`AsyncLLM` as the engine configures it, with nothing of the engine between it and the requests."""

    def __init__(self, engine: VllmEngine, adapters: Sequence[VllmAdapter]) -> None:
        self._engine = engine
        self._adapters = adapters

    def run(self, prompts: Sequence[Sequence[int]], wearers: Sequence[int | None], new: int) -> Timed:
        """All requests at once."""
        return self._engine._loop.run(self._all(prompts, wearers, new))

    async def _all(self, prompts: Sequence[Sequence[int]], wearers: Sequence[int | None], new: int) -> Timed:
        begin = time.perf_counter()
        firsts = await asyncio.gather(*(self._one(p, w, new) for p, w in zip(prompts, wearers, strict=True)))
        seconds = time.perf_counter() - begin
        return len(prompts) * new / seconds, statistics.median(first - begin for first in firsts)

    async def _one(self, prompt: Sequence[int], wearer: int | None, new: int) -> float:
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind

        from weft_server.vllm_engine.conversion import lora_request

        params = SamplingParams(
            temperature=0.0, max_tokens=new, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA
        )
        lora = None if wearer is None else lora_request(self._adapters[wearer])
        stream: Any = self._engine.launched.llm.generate(
            tokens_input(list(prompt)), params, uuid.uuid4().hex, lora_request=lora
        )
        first, count = 0.0, 0
        async for output in stream:
            first = first or time.perf_counter()
            count += len(output.outputs[0].token_ids)
        assert count == new
        return first


class Served:
    """The server, through its own client."""

    def __init__(self, address: str, names: Sequence[str]) -> None:
        self._address = address
        self._names = names

    def run(self, prompts: Sequence[Sequence[int]], wearers: Sequence[int | None], new: int) -> Timed:
        """All requests at once."""
        return asyncio.run(self._all(prompts, wearers, new))

    async def _all(self, prompts: Sequence[Sequence[int]], wearers: Sequence[int | None], new: int) -> Timed:
        async with AsyncInferenceClient(self._address, timeout_s=300) as client:
            # The connection is not what is measured.
            await client.generate(token_ids=[100], max_new_tokens=1)
            begin = time.perf_counter()
            firsts = await asyncio.gather(
                *(self._one(client, p, w, new) for p, w in zip(prompts, wearers, strict=True))
            )
            seconds = time.perf_counter() - begin
        return len(prompts) * new / seconds, statistics.median(first - begin for first in firsts)

    async def _one(self, client: AsyncInferenceClient, prompt: Sequence[int], wearer: int | None, new: int) -> float:
        first, count = 0.0, 0
        adapter = "" if wearer is None else self._names[wearer]
        async for chunk in client.stream(adapter=adapter, token_ids=list(prompt), max_new_tokens=new, ignore_eos=True):
            first = first or time.perf_counter()
            count += len(chunk.token_ids)
        assert count == new
        return first


def main() -> None:
    """Runs the benchmark."""
    args = arguments(__doc__ or "")
    base = real_base(benchmark_home())
    catalog = Catalog(0, 2 * ADAPTERS)
    # LoRA and QA-LoRA come in turns there.
    names = catalog.large_names[::2]
    new = QUICK_NEW if args.quick else NEW
    samples, prompts = Samples(), Prompts(base.config.vocab_size, seed=0)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(dir=benchmark_home().cache)))
        home = make_home(directory / "home", base.spec, catalog)
        server = ServerProcess(home, (*OPTIONS, *SETTINGS))
        stack.callback(server.stop)
        engine = VllmEngine(
            base,
            VllmEngineOptions(
                cache=directory,
                kv_bytes=1 << 30,
                adapter_bytes=512 << 20,
                max_active_adapters=ADAPTERS,
                arguments={"max_lora_rank": RANK},
            ),
        )
        stack.callback(engine.close)
        engine.start(lambda events: None)
        sides: dict[str, Bare | Served] = {
            "bare": Bare(engine, _bind(engine, home, names, directory)),
            "served": Served(server.wait_ready(), names),
        }
        for wearers, name in (([None] * BATCH, "base"), ([row % ADAPTERS for row in range(BATCH)], "lora_8")):
            for side in sides.values():
                side.run(prompts.batch(BATCH, PROMPT), wearers, WARM_NEW)
            for _ in range(1 if args.quick else 5):
                batch = prompts.batch(BATCH, PROMPT)
                bare, served = (side.run(batch, wearers, new) for side in sides.values())
                samples.add(f"{name}_bare", bare[0])
                samples.add(f"{name}_served", served[0], against=bare[0])
                samples.add(f"{name}_ttft_bare", bare[1])
                samples.add(f"{name}_ttft_served", served[1], against=bare[1])
    rows: list[Row] = []
    for name in ("base", "lora_8"):
        rows += [samples.row(f"{name}_bare", "tok/s"), samples.row(f"{name}_served", "tok/s", "bare")]
        rows += [samples.row(f"{name}_ttft_bare", "s"), samples.row(f"{name}_ttft_served", "s", "bare")]
    report(f"Over vLLM, SmolLM2-135M int4, batch {BATCH}", rows, args.json)


def _bind(engine: VllmEngine, home: Home, names: Sequence[str], directory: Path) -> list[VllmAdapter]:
    registry = EmbeddedRegistry(home)
    try:
        bound = []
        for index, name in enumerate(names):
            target = directory / f"adapter-{index}"
            pull(registry, name, target)
            manifest = artifact.read(target)
            bound.append(engine.bind(target, manifest, manifest.digest()))
        return bound
    finally:
        registry.close()


if __name__ == "__main__":
    main()
