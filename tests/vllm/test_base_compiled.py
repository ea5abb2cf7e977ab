"""A compiled model sees the zeros change in place. It would not see a dense weight, and refuses one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.subjects import random_adapter
from tests.tiny_models import AddedBase
from tests.vllm.bases import VLLM_SIZES, Reference, delta, running
from weft_registry.errors import PreconditionError
from weft_server.vllm_engine.base.merge_file import adapter_merge_file

pytestmark = pytest.mark.timeout(300)


def test_a_compiled_model_merges_zeros_and_refuses_dense_weights(
    tiny_base: Callable[..., AddedBase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing compiled is read from, or left to, other runs.
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "compiled"))
    monkeypatch.setenv("VLLM_DISABLE_COMPILE_CACHE", "1")
    base = tiny_base("llama", **VLLM_SIZES).stored
    qalora = random_adapter("qalora", base.spec, seed=3, strength=0.1)
    lora = random_adapter("lora", base.spec, seed=4, strength=0.1)
    settings = {"dtype": "bfloat16", "enforce_eager": False, "additional_config": {"weft_int4_kernel": "pooled"}}
    with running(base, tmp_path, **settings) as engine:
        alone = engine.answers(new=1)
        with adapter_merge_file(qalora.bound(torch.bfloat16), base, tmp_path, dtype=torch.bfloat16) as file:
            engine.call("weft_merge", *file.arguments)
        merged = engine.answers(new=1)
        with (
            adapter_merge_file(lora.bound(torch.bfloat16), base, tmp_path, dtype=torch.bfloat16) as file,
            pytest.raises(PreconditionError, match="enforce_eager"),
        ):
            engine.call("weft_merge", *file.arguments)
        assert engine.answers(new=1) == alone, "a refused merge leaves the base alone"
    change = delta(qalora, base)
    Reference(base).agrees(alone, tolerance=2.5 * Reference(base).rounding())
    Reference(base, change).agrees(merged, tolerance=2.5 * Reference(base, change).rounding())
    assert [answer.tokens for answer in merged] != [answer.tokens for answer in alone]
