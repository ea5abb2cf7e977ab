"""Two workers, each with its share of every layer: the same answers, merged, unmerged and with the base alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.subjects import random_adapter
from tests.tiny_models import AddedBase
from tests.vllm.bases import VLLM_SIZES, Reference, delta, running
from weft_server.vllm_engine.base.merge_file import adapter_merge_file

pytestmark = pytest.mark.timeout(300)

TOLERANCE = 2e-4


@pytest.mark.usefixtures("plugin")
def test_every_worker_merges_its_slices(tiny_base: Callable[..., AddedBase], tmp_path: Path) -> None:
    base = tiny_base("qwen2", **VLLM_SIZES).stored
    qalora = random_adapter("qalora", base.spec, seed=3, strength=0.1)
    lora = random_adapter("lora", base.spec, seed=4, strength=0.1)
    with running(
        base, tmp_path, tensor_parallel_size=2, distributed_executor_backend="mp", max_num_batched_tokens=128
    ) as engine:
        alone, digests = engine.answers(), engine.call("weft_zeros_sha256")
        assert len(set(digests)) == 2, "two workers with the same zeros share nothing out"
        merged = {}
        for adapter in (qalora, lora):
            with adapter_merge_file(adapter.bound(torch.float32), base, tmp_path) as file:
                assert [answer["layers"] for answer in engine.call("weft_merge", *file.arguments)] == [8, 8]
            merged[adapter.kind] = engine.answers()
        engine.call("weft_unmerge")
        assert engine.call("weft_zeros_sha256") == digests
        assert engine.answers() == alone
    Reference(base).agrees(alone, TOLERANCE)
    for adapter in (qalora, lora):
        Reference(base, delta(adapter, base)).agrees(merged[adapter.kind], TOLERANCE)
