"""Soft prompts in vLLM, against transformers with the same rows before the text's embeddings: the same tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.vllm.tiny import OPTIONS, SHAPE, text
from weft_registry import artifact
from weft_registry import digest as digests
from weft_registry.errors import InvalidInputError
from weft_server.vllm_engine.soft_prompts import ENGINE_ARGUMENTS, SoftPrompt, soft_prompt, soft_prompt_request

HIDDEN, LAYERS, LENGTH = SHAPE["hidden_size"], 2, 10
LORA = "base_model.model.model.layers.{}.mlp.down_proj.lora_{}.weight"


class Tiny(NamedTuple):
    """An engine, the same model in transformers, and a LoRA for both."""

    llm: Any
    model: Any
    lora: Path


class Row(NamedTuple):
    """One request."""

    text: list[int]
    soft: SoftPrompt | None = None
    lora: bool = False


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, tiny_source: Callable[..., Path]) -> Iterator[Tiny]:
    from vllm import LLM

    directory = tiny_source("llama", **SHAPE)
    lora, generator = tmp_path_factory.mktemp("lora"), torch.Generator().manual_seed(7)
    tensors = {}
    for layer in range(LAYERS):
        tensors[LORA.format(layer, "A")] = torch.randn(4, 128, generator=generator) * 0.3
        tensors[LORA.format(layer, "B")] = torch.randn(HIDDEN, 4, generator=generator) * 0.3
    save_file(tensors, lora / artifact.WEIGHTS)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["down_proj"], "bias": "none"}
    (lora / artifact.CONFIG).write_text(json.dumps(config))
    llm = LLM(str(directory), **OPTIONS, max_loras=2, **ENGINE_ARGUMENTS)
    yield Tiny(llm, AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32), lora)
    llm.llm_engine.engine_core.shutdown()


def random_soft(virtual: int, seed: int) -> SoftPrompt:
    rows_PD = torch.randn(virtual, HIDDEN, generator=torch.Generator().manual_seed(seed))
    return soft_prompt(digests.of_bytes(rows_PD.numpy().tobytes()), rows_PD, HIDDEN, torch.float32)


def expected(tiny: Tiny, row: Row) -> list[tuple[int, float]]:
    """Tokens and log-probabilities by transformers, all recomputed at every step."""
    hooks = []
    if row.lora:
        tensors = load_file(tiny.lora / artifact.WEIGHTS)
        for layer in range(LAYERS):
            delta = 2.0 * tensors[LORA.format(layer, "B")] @ tensors[LORA.format(layer, "A")]
            hooks.append(
                tiny.model.model.layers[layer].mlp.down_proj.register_forward_hook(
                    lambda _module, inputs, output, delta=delta: output + inputs[0] @ delta.T
                )
            )
    ids, found = list(row.text), []
    with torch.no_grad():
        for _ in range(LENGTH):
            rows = tiny.model.get_input_embeddings()(torch.tensor(ids))
            if row.soft is not None:
                rows = torch.cat([row.soft.rows_PD, rows])
            logprobs, token = tiny.model(inputs_embeds=rows[None]).logits[0, -1].log_softmax(-1).max(-1)
            found.append((int(token), float(logprobs)))
            ids.append(int(token))
    for hook in hooks:
        hook.remove()
    return found


def check(tiny: Tiny, rows: list[Row]) -> list[Any]:
    """Runs them together; everybody gets what transformers gives him alone."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    prompts = [soft_prompt_request(row.soft, row.text) if row.soft else {"prompt_token_ids": row.text} for row in rows]
    params = SamplingParams(temperature=0, max_tokens=LENGTH, ignore_eos=True, detokenize=False, logprobs=0)
    loras = [LoRARequest("lora", 1, str(tiny.lora)) if row.lora else None for row in rows]
    outputs = list(tiny.llm.generate(prompts, params, lora_request=loras, use_tqdm=False))
    for row, output in zip(rows, outputs, strict=True):
        wanted, found = expected(tiny, row), output.outputs[0]
        assert list(found.token_ids) == [token for token, _ in wanted]
        logprobs = [step[token].logprob for step, token in zip(found.logprobs, found.token_ids, strict=True)]
        assert logprobs == pytest.approx([logprob for _, logprob in wanted], abs=1e-4)
    return outputs


# Less than a block, whole blocks, and more than a step computes.
@pytest.mark.parametrize("virtual", [1, 7, 32, 70])
def test_a_soft_prompt_gives_the_tokens_of_transformers(tiny: Tiny, virtual: int) -> None:
    row = Row(text(1, 9), random_soft(virtual, 1))
    assert expected(tiny, row) != expected(tiny, row._replace(soft=None))
    check(tiny, [row])
    check(tiny, [Row(text(2, 1), row.soft), Row(text(3, 60), row.soft)])


def test_soft_prompts_loras_and_base_rows_share_a_batch(tiny: Tiny) -> None:
    one, other = random_soft(5, 2), random_soft(40, 3)
    prompt = text(4, 12)
    rows = [
        Row(prompt),
        Row(prompt, one),
        Row(prompt, lora=True),
        Row(prompt, other),
        Row(prompt, other, lora=True),
        Row(text(5, 50), one),
        Row(prompt),
    ]
    assert len({tuple(expected(tiny, row)) for row in rows}) == 6
    for _ in range(2):  # Computed, then from the cache.
        check(tiny, rows)


def test_blocks_are_shared_within_a_version_and_never_between_two(tiny: Tiny) -> None:
    prompt, old = text(6, 40), random_soft(40, 4)
    new = random_soft(40, 5)
    assert [check(tiny, [Row(prompt, soft)])[0].num_cached_tokens for soft in (old, old, new, new, old)] == [
        0,
        64,
        0,
        64,
        64,
    ]


def test_what_does_not_fit_is_refused() -> None:
    for rows in (torch.zeros(4, HIDDEN + 1), torch.zeros(HIDDEN), torch.zeros(0, HIDDEN)):
        with pytest.raises(InvalidInputError, match="shape"):
            soft_prompt("sha256:0", rows, HIDDEN, torch.float32)
    with pytest.raises(InvalidInputError, match="finite"):
        soft_prompt("sha256:0", torch.full((2, HIDDEN), float("nan")), HIDDEN, torch.float32)
    with pytest.raises(InvalidInputError, match=r"finite in torch\.float16"):
        soft_prompt("sha256:0", torch.full((2, HIDDEN), 1e6), HIDDEN, torch.float16)
    with pytest.raises(InvalidInputError, match="at least one"):
        soft_prompt_request(random_soft(2, 6), [])
