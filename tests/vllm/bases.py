"""Engines over a stored base in this process, and the float32 reference that they are compared with."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.subjects import RandomAdapter
from weft_adapters.base.dense import dequantized_state_dict
from weft_adapters.base.load import StoredBase
from weft_registry.kinds.low_rank import PEFT_PREFIX
from weft_server.vllm_engine.base.directory import vllm_directory
from weft_server.vllm_engine.base.names import WORKER_EXTENSION

VLLM_SIZES = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
"""Of a tiny base: groups of 128 fit, and vLLM's attention on a CPU takes no smaller heads."""
PROMPTS = ([5, 9, 101, 33], [1, 2, 3, 4, 5, 6, 7, 300, 12], [42], [17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29])


@dataclass(frozen=True)
class Answer:
    """Greedy tokens, and at each the log-probabilities of the likeliest, by token id."""

    tokens: list[int]
    logprobs: list[dict[int, float]]


class Engine:
    """vLLM's `LLM` over a base."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm

    def answers(self, prompts: Sequence[Sequence[int]] = PROMPTS, new: int = 8, lora: Any = None) -> list[Answer]:
        import vllm

        outputs = self.llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            vllm.SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True, detokenize=False, logprobs=5),
            lora_request=lora,
            use_tqdm=False,
        )
        return [
            Answer(
                list(output.outputs[0].token_ids),
                [{i: entry.logprob for i, entry in position.items()} for position in output.outputs[0].logprobs],
            )
            for output in outputs
        ]

    def call(self, method: Any, *args: Any) -> list[Any]:
        answer: list[Any] = self.llm.collective_rpc(method, args=args)
        return answer


@contextlib.contextmanager
def running(base: StoredBase | Path, cache: Path, **options: Any) -> Iterator[Engine]:
    """An engine, gone at the end. `options` are vLLM's."""
    import vllm
    from vllm.distributed import cleanup_dist_env_and_memory

    from weft_server.vllm_engine.plugin import register

    register()
    settings: dict[str, Any] = {
        "dtype": "float32",
        "skip_tokenizer_init": True,
        "enable_prefix_caching": False,
        "enforce_eager": True,
        "max_model_len": 128,
        "max_num_seqs": 8,
        "distributed_executor_backend": "uni",
        "disable_log_stats": True,
        "worker_extension_cls": WORKER_EXTENSION,
    }
    model = base if isinstance(base, Path) else vllm_directory(base, cache)
    llm = vllm.LLM(model=str(model), **settings | options)
    try:
        yield Engine(llm)
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


class Reference:
    """transformers' own model in float32 over dense weights, given as a change to the base's."""

    def __init__(self, base: StoredBase, change: Mapping[str, Tensor] | None = None) -> None:
        self._model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base.path), dtype=torch.float32)
        state = dequantized_state_dict(base)
        for module, delta_NK in (change or {}).items():
            state[f"{module}.weight"] = (state[f"{module}.weight"].double() + delta_NK).float()
        self._model.load_state_dict(state)
        self._model.eval()

    def agrees(self, answers: Sequence[Answer], tolerance: float, prompts: Sequence[Sequence[int]] = PROMPTS) -> None:
        """Asserts that every token is this model's likeliest too, up to near ties, and every log-probability its."""
        for prompt, answer in zip(prompts, answers, strict=True):
            with torch.inference_mode():
                logits = self._model(torch.tensor([list(prompt) + answer.tokens])).logits[0, len(prompt) - 1 : -1]
            expected_TV = logits.log_softmax(-1)
            for position, (token, found) in enumerate(zip(answer.tokens, answer.logprobs, strict=True)):
                assert expected_TV[position, token] >= expected_TV[position].max() - 2 * tolerance
                for token_id, logprob in found.items():
                    assert abs(expected_TV[position, token_id].item() - logprob) < tolerance

    def rounding(self, prompts: Sequence[Sequence[int]] = PROMPTS) -> float:
        """How far the same model in bfloat16 is from float32: the largest difference of the log-probabilities of the
        five likeliest first tokens."""
        with torch.inference_mode():
            exact = [self._model(torch.tensor([list(prompt)])).logits[0, -1].log_softmax(-1) for prompt in prompts]
            self._model.bfloat16()
            rounded = [self._model(torch.tensor([list(prompt)])).logits[0, -1].float() for prompt in prompts]
            self._model.float()  # its weights stay rounded: a reference is made anew for float32
        pairs = zip(exact, rounded, strict=True)
        return max(float((one - other.log_softmax(-1))[one.topk(5).indices].abs().max()) for one, other in pairs)


def delta(adapter: RandomAdapter, base: StoredBase) -> dict[str, Tensor]:
    """What an adapter adds to each dense weight, by the formulas, in float64: `s B A`, A repeated over each group where
    it reads pooled inputs."""
    deltas = {}
    for module, (_, n_in) in base.spec.linears.items():
        a_rK = adapter.tensors.get(f"{PEFT_PREFIX}{module}.lora_A.weight")
        if a_rK is None:
            continue
        b_Nr = adapter.tensors[f"{PEFT_PREFIX}{module}.lora_B.weight"]
        a_rK = a_rK.double().repeat_interleave(n_in // a_rK.shape[1], dim=1)
        deltas[module] = adapter.params.scaling(module) * (b_Nr.double() @ a_rK)
    return deltas


def difference(ours: Sequence[Answer], theirs: Sequence[Answer]) -> float:
    """The largest difference of log-probabilities. The tokens must be the same."""
    assert [answer.tokens for answer in ours] == [answer.tokens for answer in theirs]
    return max(
        abs(mine[token] - yours[token])
        for one, other in zip(ours, theirs, strict=True)
        for mine, yours in zip(one.logprobs, other.logprobs, strict=True)
        for token in mine.keys() & yours.keys()
    )
