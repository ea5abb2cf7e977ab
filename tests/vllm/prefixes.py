"""An engine with prefix adapters, and what transformers answers with the same keys and values in its cache."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DynamicCache

from tests.vllm.tiny import OPTIONS
from tests.vllm.tiny import SHAPE as TINY_SHAPE
from weft_registry import artifact
from weft_registry import digest as digests
from weft_server.vllm_engine.prefix_request import PrefixAdapter, prefix_request

HEADS = 2
SHAPE: dict[str, Any] = {**TINY_SHAPE, "num_key_value_heads": HEADS}
HIDDEN, LAYERS, HEAD_DIM = SHAPE["hidden_size"], 2, SHAPE["head_dim"]


class Tiny(NamedTuple):
    """An engine and the same model in transformers."""

    llm: Any
    model: Any
    root: Path
    """Where prefixes are read from."""


class Row(NamedTuple):
    """One request."""

    prompt: list[int]
    prefix: PrefixAdapter | None = None
    lora: Path | None = None
    options: dict[str, Any] = {}  # noqa: RUF012
    length: int = 10


@contextmanager
def started(model_directory: Path, root: Path, **arguments: Any) -> Iterator[Tiny]:
    """An engine that reads prefixes under `root`: blocks of 32, 48 tokens a step, room for a few requests only."""
    from vllm import LLM

    from weft_server.vllm_engine.prefix_connector import kv_transfer_config

    options: dict[str, Any] = {
        **OPTIONS,
        "num_gpu_blocks_override": 14,
        "enable_prefix_caching": True,
        # One slot more than adapters: vLLM 0.32 on a CPU gives rows without an adapter the last slot's.
        "max_loras": 3,
        # Not the head: with it vLLM 0.32 on a CPU fails at `prompt_logprobs`, whoever asks for them.
        "lora_target_modules": ["o_proj"],
        "worker_extension_cls": "weft_server.vllm_engine.prefix_worker.PrefixWorker",
        "kv_transfer_config": kv_transfer_config(root, 1 << 20),
        "disable_log_stats": False,
    }
    llm = LLM(str(model_directory), **(options | arguments))
    try:
        yield Tiny(llm, AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32), root)
    finally:
        llm.llm_engine.engine_core.shutdown()


def make_prefix(root: Path, num_virtual_tokens: int, seed: int) -> PrefixAdapter:
    """A random prefix, strong enough to change the answers."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_virtual_tokens, LAYERS * 2 * HEADS * HEAD_DIM, generator=generator) * 0.7
    directory = root / f"{num_virtual_tokens}-{seed}"
    directory.mkdir(exist_ok=True)
    file = directory / artifact.WEIGHTS
    save_file({"prompt_embeddings": rows}, file)
    sha256 = digests.of_file(file)
    # The version's digest is that of a manifest: another one than the file's.
    return PrefixAdapter(digests.of_bytes(sha256.encode()), str(file), sha256, num_virtual_tokens)


def make_lora(directory: Path, seed: int) -> Path:
    """A random LoRA on the attention's outputs, as PEFT writes it."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(LAYERS):
        name = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
        tensors[f"{name}.lora_A.weight"] = torch.randn(4, 4 * HEAD_DIM, generator=generator) * 0.3
        tensors[f"{name}.lora_B.weight"] = torch.randn(HIDDEN, 4, generator=generator) * 0.3
    directory.mkdir()
    save_file(tensors, directory / artifact.WEIGHTS)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["o_proj"], "bias": "none"}
    (directory / artifact.CONFIG).write_text(json.dumps(config))
    return directory


def expected(tiny: Tiny, row: Row) -> list[int]:
    """The tokens by transformers."""
    return [token for token, _ in greedy(tiny, row)]


def greedy(tiny: Tiny, row: Row) -> list[tuple[int, float]]:
    """Tokens and their log-probabilities, one step at a time, by transformers."""
    cache, start = DynamicCache(), 0
    if row.prefix is not None:
        start = row.prefix.num_virtual_tokens
        rows = load_file(row.prefix.file)["prompt_embeddings"].view(start, LAYERS, 2, HEADS, HEAD_DIM)
        for layer in range(LAYERS):
            key, value = rows[:, layer].permute(1, 2, 0, 3).unsqueeze(1)
            cache.update(key, value, layer)
    deltas = {}
    if row.lora is not None:
        tensors = load_file(row.lora / artifact.WEIGHTS)
        for layer in range(LAYERS):
            name = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
            deltas[layer] = 2.0 * tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
    hooks = [
        tiny.model.model.layers[layer].self_attn.o_proj.register_forward_hook(
            lambda _module, inputs, output, delta=delta: output + inputs[0] @ delta.T
        )
        for layer, delta in deltas.items()
    ]
    found: list[tuple[int, float]] = []
    ids = torch.tensor([row.prompt])
    with torch.no_grad():
        for _ in range(row.length):
            positions = torch.arange(start, start + ids.shape[1])[None]
            output = tiny.model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True)
            start += ids.shape[1]
            logprobs, ids = output.logits[:, -1].log_softmax(-1).max(-1, keepdim=True)
            found.append((int(ids), float(logprobs)))
    for hook in hooks:
        hook.remove()
    return found


def run(tiny: Tiny, rows: Sequence[Row]) -> list[Any]:
    """All of them at once; vLLM's outputs in order."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    prompts, params, loras = [], [], []
    for row in rows:
        prompt: dict[str, Any] = {"prompt_token_ids": row.prompt}
        extra: dict[str, Any] = {}
        if row.prefix is not None:
            part = prefix_request(row.prefix)
            prompt = {"prompt_token_ids": part.placeholder_ids + row.prompt, "cache_salt": part.cache_salt}
            extra = {"extra_args": part.extra_args}
        prompts.append(prompt)
        params.append(
            SamplingParams(
                temperature=0,
                max_tokens=row.length,
                ignore_eos=True,
                detokenize=False,
                logprobs=0,
                **(extra | row.options),
            )
        )
        name = "" if row.lora is None else row.lora.name
        loras.append(LoRARequest(name, 1 + int(name[-1]), str(row.lora)) if row.lora else None)
    return list(tiny.llm.generate(prompts, params, lora_request=loras, use_tqdm=False))


def check(tiny: Tiny, rows: Sequence[Row]) -> list[Any]:
    """Runs them together; everybody gets what transformers gives him alone."""
    outputs = run(tiny, rows)
    for row, output in zip(rows, outputs, strict=True):
        same(tiny, row, output)
    return outputs


def same(tiny: Tiny, row: Row, output: Any) -> None:
    """The tokens, and their log-probabilities up to rounding."""
    wanted, found = greedy(tiny, row), output.outputs[0]
    assert list(found.token_ids) == [token for token, _ in wanted]
    logprobs = [step[token].logprob for step, token in zip(found.logprobs, found.token_ids, strict=True)]
    assert logprobs == pytest.approx([logprob for _, logprob in wanted], abs=1e-4)
