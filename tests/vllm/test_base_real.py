"""The real base in float32: both engines answer the same tokens, with the base alone and with an adapter merged."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from benchmarks.engines import Runner, engine_options
from benchmarks.subjects import random_adapter
from tests.tiny_models import AddedBase
from tests.vllm.bases import Reference, running
from weft_server.torch_engine.engine import TorchEngine
from weft_server.vllm_engine.base.merge_file import adapter_merge_file

pytestmark = [pytest.mark.timeout(300), pytest.mark.real]

TEXTS = (
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time there was a",
    "Water boils at a temperature of",
)
NEW = 24


def test_greedy_answers_equal_the_torch_engines(real_base: AddedBase, tmp_path: Path) -> None:
    base = real_base.stored
    tokenizer = Tokenizer.from_file(str(base.tokenizer_dir / "tokenizer.json"))
    prompts = [tokenizer.encode(text).ids for text in TEXTS]
    adapter = random_adapter("qalora", base.spec, seed=6, strength=0.04).bound(torch.float32)
    with running(base, tmp_path) as engine:
        alone = engine.answers(prompts, NEW)
        with adapter_merge_file(adapter, base, tmp_path) as file:
            engine.call("weft_merge", *file.arguments)
        merged = engine.answers(prompts, NEW)
    Reference(base).agrees(alone, tolerance=1e-3, prompts=prompts)

    torch_engine = TorchEngine(base, engine_options(torch.float32, copies=False))
    runner = Runner(torch_engine)
    try:
        assert [answer.tokens for answer in alone] == runner.run(prompts, [None] * len(prompts), NEW)
        assert [answer.tokens for answer in merged] == runner.run(prompts, [adapter] * len(prompts), NEW)
    finally:
        torch_engine.close()
    assert [answer.tokens for answer in merged] != [answer.tokens for answer in alone]
