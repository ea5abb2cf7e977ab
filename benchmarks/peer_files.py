"""What the peers load: the same base and the same adapters, in the formats that they read."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.subjects import BASE_SOURCE, RandomAdapter
from weft_adapters.base import layout
from weft_adapters.base.dense import dequantized_state_dict
from weft_adapters.base.load import StoredBase
from weft_adapters.base.sources import fetch
from weft_registry import artifact
from weft_registry.home import Home
from weft_registry.peft_format import config_bytes, to_peft


def checkpoint(home: Home, base: StoredBase) -> Path:
    """A Hugging Face model directory with the base's dequantized weights in bfloat16, written once."""
    target = home.cache / "peers" / f"checkpoint-{base.spec.fingerprint.weights_sha256[-12:]}"
    if not target.is_dir():
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(base.tokenizer_dir, partial)
        state = dequantized_state_dict(base, torch.bfloat16)
        if base.config.tie_word_embeddings:
            # safetensors refuses one tensor under two names; the configuration says that the head is tied.
            del state[layout.HEAD]
        save_file({k: v.contiguous() for k, v in state.items()}, partial / "model.safetensors", {"format": "pt"})
        partial.rename(target)
    return target


def peft_directories(directory: Path, base: StoredBase, adapters: Sequence[RandomAdapter]) -> list[Path]:
    """The adapters as PEFT saves them, one directory each under `directory`."""
    paths = []
    for index, adapter in enumerate(adapters):
        path = directory / f"a{index}"
        path.mkdir()
        (path / artifact.CONFIG).write_bytes(config_bytes(to_peft(adapter.kind, adapter.params, base.spec)))
        save_file(adapter.tensors, path / artifact.WEIGHTS)
        paths.append(path)
    return paths


def gguf(home: Home) -> Path:
    """The GGUF file that the base was imported from: the base's own numbers, linears in Q4_1."""
    return fetch(home, BASE_SOURCE, lambda line: print(line, file=sys.stderr)).path
