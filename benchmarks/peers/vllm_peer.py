"""vLLM's CPU build, in one process: `LLM.generate` with a LoRARequest for every request.

Settings as its documentation advises for a CPU, and what makes the sides comparable: no prefix cache, no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import vllm
from vllm.lora.request import LoRARequest


class Peer:
    """One model; with adapters, the engine that can batch them."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._adapters = [
            LoRARequest(lora_name=f"a{index}", lora_int_id=index + 1, lora_path=path)
            for index, path in enumerate(settings["adapters"])
        ]
        lora: dict[str, Any] = {}
        if self._adapters:
            # One slot more than adapters: in 0.32 on a CPU, base rows are given the LAST slot's adapter.
            slots = len(self._adapters) + 1
            lora = {"enable_lora": True, "max_loras": slots, "max_cpu_loras": slots, "max_lora_rank": settings["rank"]}
        self._llm = vllm.LLM(
            model=settings["model"],
            dtype="bfloat16",
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
            enforce_eager=settings["eager"],
            max_model_len=settings["context"],
            max_num_seqs=settings["batch"],
            # Room for every prompt of a batch in one step.
            max_num_batched_tokens=settings["batch"] * settings["context"],
            distributed_executor_backend="uni",
            disable_log_stats=True,
            **lora,
        )
        self.about = (
            f"vLLM {vllm.__version__}, torch {torch.__version__}, {'eager' if settings['eager'] else 'compiled'}"
        )

    def generate(self, prompts: Sequence[Sequence[int]], adapters: Sequence[int | None], new: int) -> list[list[int]]:
        """Greedy tokens; an adapter of None is the base model."""
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            vllm.SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True, detokenize=False),
            lora_request=[None if index is None else self._adapters[index] for index in adapters],
            use_tqdm=False,
        )
        return [list(output.outputs[0].token_ids) for output in outputs]
