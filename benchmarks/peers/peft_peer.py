"""PEFT over transformers, in bfloat16: every row of a batch with the adapter that `adapter_names` gives it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import peft
import torch
import transformers


class Peer:
    """One model with the adapters a0, a1, ... loaded."""

    def __init__(self, settings: dict[str, Any]) -> None:
        torch.set_num_threads(settings["threads"])
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.bfloat16)
        for index, path in enumerate(settings["adapters"]):
            if index == 0:
                model = peft.PeftModel.from_pretrained(model, path, adapter_name="a0")
            else:
                model.load_adapter(path, adapter_name=f"a{index}")
        self._model = model.to(torch.bfloat16).eval()
        self.about = f"PEFT {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}"

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], adapters: Sequence[int | None], new: int) -> list[list[int]]:
        """Greedy tokens of equally long prompts; an adapter of None is the base model."""
        ids = torch.tensor(prompts)
        out = self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            adapter_names=["__base__" if index is None else f"a{index}" for index in adapters],
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
        )
        tokens: list[list[int]] = out[:, ids.shape[1] :].tolist()
        return tokens
