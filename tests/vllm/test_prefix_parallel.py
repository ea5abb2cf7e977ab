"""Prefixes with two workers, each with its share of every layer's heads: the same answers as transformers'."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vllm.prefixes import HEAD_DIM, LAYERS, SHAPE, Row, check, make_prefix, run, started
from tests.vllm.tiny import text

pytestmark = pytest.mark.timeout(300)


def test_every_worker_writes_its_heads(
    tiny_source: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, sys.path)))
    # A fork would keep the locks of this process's threads.
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    one, other = make_prefix(tmp_path, 37, 1), make_prefix(tmp_path, 5, 2)
    rows = [Row(text(1, 12), one), Row(text(1, 12)), Row(text(1, 12), other), Row(text(2, 60), one)]
    with started(
        tiny_source("llama", **SHAPE), tmp_path, tensor_parallel_size=2, distributed_executor_backend="mp"
    ) as tiny:
        # Half of the heads each.
        size = 37 * LAYERS * 2 * HEAD_DIM * 4
        assert tiny.llm.collective_rpc("weft_load_prefix", args=(vars(one),)) == [size, size]
        for _ in range(2):  # Computed, then from the cache.
            check(tiny, rows)
        # A file that is not what it was fails its requests, and no others.
        Path(other.file).write_bytes(b"")
        assert tiny.llm.reset_prefix_cache()
        assert tiny.llm.collective_rpc("weft_forget_prefix", args=(other.digest,)) == [size, size]
        outputs = run(tiny, rows)
    assert [output.outputs[0].finish_reason for output in outputs] == ["length", "length", "error", "length"]
