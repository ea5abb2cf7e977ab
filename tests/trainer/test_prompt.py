"""Prompt tuning and P-tuning against stock PEFT on the dequantized dense model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from tests.tiny_models import AddedBase
from tests.trainer import oracles
from tests.trainer.oracles import BATCH, assert_encoder_gradients, dense_model
from weft_adapters.kinds.kind import MergeRefusedError
from weft_registry import artifact as artifacts
from weft_registry.errors import InvalidInputError
from weft_trainer.config.adapter import PromptOptions, PTuningOptions
from weft_trainer.config.run import TrainConfig
from weft_trainer.data.tokenization import BaseTokenizer
from weft_trainer.evaluate import evaluate
from weft_trainer.methods import METHODS
from weft_trainer.modeling.base import build
from weft_trainer.progress import QuietReporter

TENSOR = "prompt_embeddings"


def attach(base: AddedBase, options: PromptOptions | PTuningOptions, dtype: torch.dtype = torch.float32) -> Any:
    method = "prompt_tuning" if isinstance(options, PromptOptions) else "p_tuning"
    return oracles.attach(base, method, options, dtype)


CASES: dict[str, tuple[PromptOptions | PTuningOptions, Callable[[], peft.PromptLearningConfig]]] = {
    "embeddings": (
        PromptOptions(num_virtual_tokens=3),
        lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    ),
    "mlp": (
        PTuningOptions(num_virtual_tokens=3, encoder_hidden_size=24),
        lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=24),
    ),
    "lstm": (
        PTuningOptions(num_virtual_tokens=4, encoder="lstm", encoder_hidden_size=16, encoder_num_layers=3),
        lambda: peft.PromptEncoderConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=4,
            encoder_reparameterization_type="LSTM",
            encoder_hidden_size=16,
            encoder_num_layers=3,
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_stock_pefts(deep_base: AddedBase, case: str) -> None:
    """On a batch that is padded on the right; PEFT leaves the virtual positions out of its loss."""
    options, config = CASES[case]
    ours = attach(deep_base, options)
    theirs: Any = peft.get_peft_model(dense_model(deep_base), config())
    assert_encoder_gradients(ours, theirs)


def test_the_base_is_frozen_and_only_the_prompt_is_trained(deep_base: AddedBase) -> None:
    hidden = deep_base.stored.spec.hidden_size
    assert sum(p.numel() for p in attach(deep_base, PromptOptions(3)).trainable().values()) == 3 * hidden


@pytest.mark.parametrize("arch", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_text_start_is_the_base_that_reads_the_text_first(tiny_base: Callable[..., AddedBase], arch: str) -> None:
    base = tiny_base(arch)
    text = "The quick brown fox"
    ours = attach(base, PromptOptions(init_text=text))
    words = torch.tensor([BaseTokenizer(base.stored.tokenizer_dir).completion(text)] * 2)
    joined = {
        "input_ids": torch.cat([words, BATCH["input_ids"]], dim=1),
        "attention_mask": torch.cat([torch.ones_like(words), BATCH["attention_mask"]], dim=1),
    }
    mask = BATCH["attention_mask"].bool()
    with torch.no_grad():
        found, wanted = ours.hidden(BATCH), ours.base.hidden(joined)[:, words.shape[1] :]
    torch.testing.assert_close(found[mask], wanted[mask], atol=1e-4, rtol=1e-4)


def test_the_length_follows_the_text_or_repeats_it(deep_base: AddedBase) -> None:
    ids = BaseTokenizer(deep_base.stored.tokenizer_dir).completion("quick brown fox")
    rows = attach(deep_base, PromptOptions(len(ids) + 2, init_text="quick brown fox")).export()[TENSOR]
    wanted = deep_base.stored.embedding(torch.float32)[[*ids, *ids[:2]]]
    torch.testing.assert_close(rows, wanted)
    with pytest.raises(InvalidInputError, match=f"has {len(ids)} tokens"):
        attach(deep_base, PromptOptions(1, init_text="quick brown fox"))


def test_other_starts_are_common_words_or_noise_of_their_spread(deep_base: AddedBase) -> None:
    embedding_VE = deep_base.stored.embedding(torch.float32)

    def words(options: PromptOptions) -> list[int]:
        rows = attach(deep_base, options).export()[TENSOR]
        same = (rows[:, None] == embedding_VE[None]).all(-1)
        return [int(row.nonzero()[0]) if row.any() else -1 for row in same]

    drawn = words(PromptOptions(64))
    assert min(drawn) >= 0
    assert max(drawn) > 99
    assert len(set(drawn)) > 30
    assert (
        0 <= min(words(PromptOptions(64, init_vocabulary=10))) <= max(words(PromptOptions(64, init_vocabulary=10))) < 10
    )
    assert set(words(PromptOptions(64, init="random"))) == {-1}
    noise = attach(deep_base, PromptOptions(64, init="random")).export()[TENSOR]
    assert float(noise.std()) == pytest.approx(float(embedding_VE.std()), rel=0.1)


def test_dropout_acts_in_training_and_not_in_what_is_exported(deep_base: AddedBase) -> None:
    model = attach(deep_base, PTuningOptions(encoder="lstm", encoder_hidden_size=8, encoder_dropout=0.5))
    model.train()
    assert not torch.equal(model.prompt(), model.prompt())
    first = model.export()[TENSOR]
    assert torch.equal(first, model.export()[TENSOR])
    assert model.training


def test_a_prompt_under_an_encoder_is_not_restored_from_a_file(deep_base: AddedBase) -> None:
    model = attach(deep_base, PTuningOptions(num_virtual_tokens=3))
    with pytest.raises(InvalidInputError, match="resumes from its checkpoint"):
        model.restore(model.export())


TRAINED: dict[str, tuple[str, dict[str, object]]] = {
    "text": ("prompt_tuning", {"init_text": "user: classify"}),
    "vocabulary": ("prompt_tuning", {"num_virtual_tokens": 4}),
    "mlp": ("p_tuning", {"num_virtual_tokens": 4}),
    "lstm": ("p_tuning", {"num_virtual_tokens": 4, "encoder": "lstm", "encoder_hidden_size": 16}),
}


@pytest.mark.parametrize("case", TRAINED)
def test_a_trained_prompt_loads_in_stock_peft_with_equal_logits(
    deep_base: AddedBase, make_config: Callable[..., TrainConfig], run: Callable[..., Path], case: str
) -> None:
    method, adapter = TRAINED[case]
    config = make_config(deep_base, method, adapter)
    artifact = run(config, deep_base)
    assert artifacts.read(artifact).kind == "prompt"
    tensors = load_file(str(artifact / "adapter_model.safetensors"))
    ours: Any = METHODS["prompt_tuning"].bare(
        build(deep_base.stored, torch.float32),
        METHODS["prompt_tuning"].params(
            PromptOptions(len(tensors[TENSOR])),
            deep_base.stored.spec,
            BaseTokenizer(deep_base.stored.tokenizer_dir),
        ),
    )
    ours.restore(tensors)
    theirs = PeftModel.from_pretrained(dense_model(deep_base), str(artifact))
    mask = BATCH["attention_mask"].bool()
    with torch.no_grad():
        logits = ours.base.logits(ours.hidden(BATCH))[mask]
        wanted = theirs(**BATCH).logits[:, len(tensors[TENSOR]) :][mask]
    torch.testing.assert_close(logits, wanted, atol=2e-5, rtol=1e-4)
    with pytest.raises(MergeRefusedError, match="soft prompt"):
        evaluate(artifact, config.data.train, QuietReporter(), merged=True, home=deep_base.home)


@pytest.mark.parametrize(("method", "rate"), [("prompt_tuning", 0.1), ("p_tuning", 0.03)])
def test_training_learns_and_the_artifact_scores_as_the_run_said(
    deep_base: AddedBase, make_config: Callable[..., TrainConfig], run: Callable[..., Path], method: str, rate: float
) -> None:
    """As far as an input can move a random base: 16.4 nats to about 10."""
    config = make_config(deep_base, method, {"num_virtual_tokens": 8}, steps=60, learning_rate=rate)
    artifact = run(config, deep_base)
    found = evaluate(artifact, config.data.train, QuietReporter(), home=deep_base.home, dtype=torch.float32)
    base = evaluate(
        None, config.data.train, QuietReporter(), base=deep_base.name, home=deep_base.home, dtype=torch.float32
    )
    assert found.loss < 0.75 * base.loss
    held_out = {metric.name: metric.value for metric in artifacts.read(artifact).metrics}
    assert float(held_out["loss"]) < 0.85 * base.loss


@pytest.mark.parametrize(
    ("options", "values", "says"),
    [
        (PromptOptions, {"init_text": "a", "init": "random"}, "give one of the two"),
        (PromptOptions, {"init": "random", "init_vocabulary": 5}, "init_vocabulary"),
        (PromptOptions, {"init_text": "a", "init_vocabulary": 5}, "init_vocabulary"),
        (PTuningOptions, {"encoder_num_layers": 3}, "without effect"),
        (PTuningOptions, {"encoder_dropout": 0.1}, "without effect"),
        (PTuningOptions, {"encoder": "lstm", "encoder_num_layers": 1, "encoder_dropout": 0.1}, "between layers"),
    ],
)
def test_a_setting_without_effect_is_refused(options: Any, values: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        options(**values)
