"""Tiny random models of every supported architecture, with a tokenizer trained on the spot: no downloads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from weft_adapters.base import StoredBase
from weft_registry.home import Home

CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
VOCABULARY = 512
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CORPUS = (
    "The quick brown fox jumps over the lazy dog while a grey cat sleeps under the old wooden table.",
    "Oil prices rose sharply on Monday after the ministers agreed to cut production by two percent.",
    "user: what is the capital of France? assistant: The capital of France is Paris.",
    "A great film, wonderfully acted and beautifully shot; the ending, however, was a disappointment.",
    "SELECT name, age FROM people WHERE city = 'Berlin' ORDER BY age DESC LIMIT 10;",
    "system user assistant positive negative neutral classify translate answer question text label",
)


class AddedBase(NamedTuple):
    """A base model added to a WEFT_HOME."""

    home: Home
    name: str
    stored: StoredBase


def make_model_directory(
    directory: Path, arch: str, *, seed: int = 0, dtype: str = "float32", **overrides: Any
) -> Path:
    """Saves a random model and its tokenizer with transformers; `overrides` are fields of the configuration.

    Norms and biases are random too (transformers starts them at one and zero, which hides a misplaced one), and the
    head is wide enough for a clear greedy choice.
    """
    options: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "tie_word_embeddings": arch != "mistral",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    if arch == "mistral":
        options["sliding_window"] = None
    config = CONFIGS[arch](**options | overrides)
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.1 * noise)
            elif "embed_tokens" in name or "lm_head" in name:
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(0.1 * noise)
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return directory


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a ChatML template: any text encodes, and decodes to itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )
