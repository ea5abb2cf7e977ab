"""LoRA, QA-LoRA and base rows in one batch, with one worker and with two: every row by its formula, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.subjects import RandomAdapter, random_adapter
from tests.tiny_models import AddedBase
from tests.vllm.bases import PROMPTS, VLLM_SIZES, Reference, delta, difference, running
from weft_adapters.base.load import StoredBase
from weft_registry import artifact
from weft_server.vllm_engine.adapters import AdapterFiles, VllmAdapter
from weft_server.vllm_engine.arguments import WORKER

pytestmark = pytest.mark.timeout(300)

TOLERANCE = 2e-4
RANK = 8


def bind(files: AdapterFiles, adapter: RandomAdapter, base: StoredBase, directory: Path) -> VllmAdapter:
    adapter.write(directory, base.spec, "test/random")
    manifest = artifact.read(directory)
    return files.bind(directory, manifest, manifest.digest())


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("workers", [1, 2])
def test_every_row_is_the_base_and_its_own_delta(
    tiny_base: Callable[..., AddedBase], tmp_path: Path, workers: int
) -> None:
    from weft_server.vllm_engine.conversion import lora_request

    base = tiny_base("qwen2", **VLLM_SIZES).stored
    wanted = [("qalora", RANK), ("lora", 5), ("qalora", 2), ("lora", RANK), ("qalora", 3)]
    adapters = [
        random_adapter(kind, base.spec, seed, rank=rank, strength=0.1) for seed, (kind, rank) in enumerate(wanted)
    ]
    modules = frozenset(base.spec.linears)
    files = AdapterFiles(
        tmp_path / "files", base.spec, max_rank=RANK, modules=modules, dtype=torch.float32, pooled=True
    )
    handles = [bind(files, adapter, base, tmp_path / f"artifact-{n}") for n, adapter in enumerate(adapters)]
    requests = [*(lora_request(handle) for handle in handles), None]
    broken = {}
    for kind in ("qalora", "lora"):
        poisoned = random_adapter(kind, base.spec, 9, rank=RANK)
        for tensor in poisoned.tensors.values():
            tensor.fill_(1e30)
        broken[kind] = lora_request(bind(files, poisoned, base, tmp_path / f"broken-{kind}"))
    prompts = [PROMPTS[row % len(PROMPTS)] for row in range(len(requests))]
    with running(
        base,
        tmp_path,
        tensor_parallel_size=workers,
        # One worker too has a process of its own: vLLM mixes one extension into its worker class for good.
        distributed_executor_backend="mp",
        max_num_batched_tokens=128,
        enable_lora=True,
        max_loras=6,
        max_lora_rank=RANK,
        lora_target_modules=sorted({name.rsplit(".", 1)[1] for name in base.spec.linears}),
        additional_config={"weft_lora_slots": 2},
        worker_extension_cls=WORKER,
    ) as engine:
        found = engine.call("weft_inspect")
        mixed = engine.answers(prompts, lora=requests)
        alone = [engine.answers([prompt], lora=request)[0] for prompt, request in zip(prompts, requests, strict=True)]
        # Last, for vLLM uses the blocks again that hold what is not finite. One LoRA makes room for the broken one.
        kept = [row for row in range(len(requests)) if row != 3]
        beside = engine.answers(
            [PROMPTS[0], *(prompts[row] for row in kept), PROMPTS[0]],
            lora=[broken["qalora"], *(requests[row] for row in kept), broken["lora"]],
        )
    assert difference(beside[1:-1], [mixed[row] for row in kept]) < TOLERANCE
    assert all(math.isnan(next(iter(beside[row].logprobs[0].values()))) for row in (0, -1))
    assert all(worker["pooled"] for worker in found)
    # A over whole inputs in two of six slots; over pooled ones, a group's size narrower, in all.
    group = base.spec.fingerprint.quant.group_size
    expected = 0
    for module, (n_out, n_in) in base.spec.linears.items():
        shared_in = module.endswith(("o_proj", "down_proj"))
        inputs, outputs = (n_in // workers, n_out) if shared_in else (n_in, n_out // workers)
        expected += 4 * RANK * (2 * inputs + 6 * inputs // group + 6 * outputs)
    assert [worker["slot_bytes"] for worker in found] == [expected] * workers
    assert difference(mixed, alone) < TOLERANCE
    for own, prompt, answer in zip([*adapters, None], prompts, mixed, strict=True):
        change = {} if own is None else delta(own, base)
        Reference(base, change).agrees([answer], TOLERANCE, [prompt])
    assert len({tuple(answer.tokens) for answer in mixed}) == len(mixed)
