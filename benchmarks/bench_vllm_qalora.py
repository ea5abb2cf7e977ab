"""QA-LoRA inside vLLM: computed on pooled inputs, beside the same adapters expanded to LoRA.

Two engines over SmolLM2-135M in its own int4, each with eight slots, take turns with the same requests: 64 prompt
tokens and 64 new ones (16 and 16 with --quick), greedy, batch 8 and 32, adapters of rank 16 on all linears in turns.
`qalora_8`: eight QA-LoRA adapters. `lora_4`: four LoRA. `mixed_8`: four of each. `slots`: as they were allocated; with
pooled inputs four of the eight hold a LoRA.

Run it where vLLM is installed: `.venv-vllm/bin/python -m benchmarks.bench_vllm_qalora`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.bench_vllm import Bare
from benchmarks.report import Row, arguments, report
from benchmarks.samples import Prompts, Samples
from benchmarks.subjects import benchmark_home, random_adapter, real_base
from weft_adapters.base.load import StoredBase
from weft_registry import artifact
from weft_server.vllm_engine.adapters import VllmAdapter
from weft_server.vllm_engine.engine import VllmEngine
from weft_server.vllm_engine.options import VllmEngineOptions

BATCHES, LENGTH, QUICK_LENGTH, WARM_NEW = (8, 32), 64, 16, 2
SLOTS, LORA_SLOTS, RANK = 8, 4, 16
WAYS = ("expanded", "pooled")


def main() -> None:
    """Runs the benchmark."""
    args = arguments(__doc__ or "")
    base = real_base(benchmark_home())
    length = QUICK_LENGTH if args.quick else LENGTH
    samples, prompts = Samples(), Prompts(base.config.vocab_size, seed=0)
    rows: list[Row] = []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(dir=benchmark_home().cache)))
        sides: dict[str, Bare] = {}
        for way in WAYS:
            engine = _engine(base, directory / way, way)
            stack.callback(engine.close)
            engine.start(lambda events: None)
            adapters = _bind(engine, base, directory / f"{way}-adapters")
            sides[way] = Bare(engine, adapters)
            rows.append(Row(f"slots_{way}", engine.launched.slot_bytes / 2**20, "MiB"))
            kinds = (("lora", adapters[0]), ("qalora", adapters[LORA_SLOTS]))
            rows += [Row(f"{kind}_adapter_{way}", one.size_bytes / 2**20, "MiB") for kind, one in kinds]
        for name, worn in (
            ("base", [None]),
            ("qalora_8", list(range(LORA_SLOTS, LORA_SLOTS + SLOTS))),
            ("lora_4", list(range(LORA_SLOTS))),
            ("mixed_8", list(range(SLOTS))),
        ):
            for batch in BATCHES:
                wearers = [worn[row % len(worn)] for row in range(batch)]
                for side in sides.values():
                    side.run(prompts.batch(batch, length), wearers, WARM_NEW)
                for _ in range(3 if args.quick else 5):
                    tokens = prompts.batch(batch, length)
                    expanded, pooled = (side.run(tokens, wearers, length)[0] for side in sides.values())
                    samples.add(f"{name}_batch_{batch}_expanded", expanded)
                    samples.add(f"{name}_batch_{batch}_pooled", pooled, against=expanded)
                rows.append(samples.row(f"{name}_batch_{batch}_expanded", "tok/s"))
                rows.append(samples.row(f"{name}_batch_{batch}_pooled", "tok/s", "expanded"))
                print(*rows[-2:], sep="\n", file=sys.stderr, flush=True)
    report("QA-LoRA inside vLLM, SmolLM2-135M int4", rows, args.json)


def _engine(base: StoredBase, cache: Path, way: str) -> VllmEngine:
    """An engine with `SLOTS` slots, of which with pooled inputs `LORA_SLOTS` hold a LoRA."""
    settings = {"weft_qalora": way} if way == "expanded" else {"weft_lora_slots": LORA_SLOTS}
    return VllmEngine(
        base,
        VllmEngineOptions(
            cache=cache,
            kv_bytes=1 << 30,
            adapter_bytes=512 << 20,
            arguments={"max_lora_rank": RANK, "max_loras": SLOTS, "additional_config": settings},
        ),
    )


def _bind(engine: VllmEngine, base: StoredBase, directory: Path) -> Sequence[VllmAdapter]:
    """`LORA_SLOTS` LoRA adapters, and `SLOTS` QA-LoRA."""
    bound = []
    for seed in range(LORA_SLOTS + SLOTS):
        kind = "lora" if seed < LORA_SLOTS else "qalora"
        target = directory / str(seed)
        random_adapter(kind, base.spec, seed, rank=RANK).write(target, base.spec, f"bench/{kind}-{seed}")
        manifest = artifact.read(target)
        bound.append(engine.bind(target, manifest, manifest.digest()))
    return bound


if __name__ == "__main__":
    main()
