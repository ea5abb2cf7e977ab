"""Asks TRL's DPOTrainer for the losses in trl_dpo.json:

    make test-trl               exits with 1 where the committed file says something else
    make test-trl WRITE=1       writes it

TRL is no dependency of Weft's: it is installed apart, at the version that the file was made with.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module
from tempfile import TemporaryDirectory
from typing import Any

import peft
import torch
from datasets import Dataset, disable_progress_bars
from transformers import LlamaConfig, LlamaForCausalLM

from tests.oracles.trl_subjects import (
    ALPHA,
    CASES,
    CONFIG,
    EXPECTED,
    MODULES,
    RANK,
    SHOWN,
    Case,
    base_tensors,
    lora_tensors,
)
from tests.tiny_models import make_tokenizer

# As values: they are typed where TRL is installed, and unknown where it is not.
trl: Any = import_module("trl")
trainers: Any = import_module("trl.trainer.dpo_trainer")


def base() -> Any:
    """The model under the LoRA."""
    model: Any = LlamaForCausalLM(LlamaConfig(**CONFIG))
    tensors = {name: torch.from_numpy(values.copy()) for name, values in base_tensors().items()}
    missing = model.load_state_dict(tensors, strict=False).missing_keys
    assert missing == ["lm_head.weight"], missing
    return model


def ask(case: Case) -> dict[str, Any]:
    """TRL's loss, reward metrics and one gradient."""
    with TemporaryDirectory() as scratch:
        arguments = trl.DPOConfig(
            output_dir=scratch,
            beta=case.beta,
            label_smoothing=case.label_smoothing,
            loss_type=["aot"] if case.label_smoothing else ["sigmoid"],
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        )
        words = {"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}
        # A new adapter's reference is the model with the adapter off; that of one that is given would be its copy.
        trainer: Any = trl.DPOTrainer(
            model=base(),
            args=arguments,
            train_dataset=Dataset.from_dict(words),
            processing_class=make_tokenizer(),
            peft_config=peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(MODULES), task_type="CAUSAL_LM"),
        )
        lora = {name: torch.from_numpy(values.copy()) for name, values in lora_tensors().items()}
        loaded: Any = peft.set_peft_model_state_dict(trainer.model, lora)
        assert not loaded.unexpected_keys, loaded.unexpected_keys
        rows = [
            {"prompt_ids": list(p.prompt), "chosen_ids": list(p.chosen), "rejected_ids": list(p.rejected)}
            for p in case.pairs
        ]
        model = trainer.model.train()
        loss = trainer._compute_loss(
            model, trainers.DataCollatorForPreference(pad_token_id=2)(rows), return_outputs=False
        )
        loss.backward()
        metrics = trainer._metrics["train"]
        shown = SHOWN.replace(".weight", ".default.weight")
        gradient = dict(model.named_parameters())[shown].grad
    return {
        "loss": loss.item(),
        "reward_margin": metrics["rewards/margins"][0],
        "reward_accuracy": metrics["rewards/accuracies"][0],
        "gradient": gradient.flatten().tolist(),
    }


def main() -> int:
    """Writes, or compares."""
    parser = argparse.ArgumentParser(description=__doc__)
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--compare", action="store_true")
    group.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    disable_progress_bars()
    found = {name: ask(case) for name, case in CASES.items()}
    if write:
        EXPECTED.write_text(json.dumps(found) + "\n")
        return 0
    expected = json.loads(EXPECTED.read_text())
    wrong = False
    for name, answer in found.items():
        for key, value in answer.items():
            ours, theirs = torch.tensor(expected[name][key]), torch.tensor(value)
            if not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6):
                print(f"{name}: {key}: the file and TRL differ by up to {(ours - theirs).abs().max():.3g}")
                wrong = True
    if not wrong:
        print(f"{len(found)} losses with their rewards and gradients are still what TRL {trl.__version__} computes")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
