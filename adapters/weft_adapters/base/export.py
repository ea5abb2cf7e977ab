"""Writes a stored base as a Hugging Face model directory in another quantization's format, for other software to load.

A format says what becomes of a linear layer; configuration, tokenizer and dense tensors are the same for all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from weft_adapters.base import layout
from weft_adapters.base.load import StoredBase
from weft_adapters.base.store import MODEL_FILE
from weft_adapters.base.tokenizer_files import TOKENIZER, TOKENIZER_CONFIG
from weft_adapters.base.writer import SafetensorsWriter
from weft_adapters.int4 import Int4Weight

TensorShapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
DTYPE = "bfloat16"
"""What config.json says that others should compute in, unless they are told otherwise."""


class LinearFormat(Protocol):
    """How one linear layer is written."""

    def shapes(self, module: str, n_out: int, n_in: int, group_size: int) -> TensorShapes:
        """The full names, dtypes and shapes of the tensors of `module`."""
        ...

    def tensors(self, module: str, weight: Int4Weight) -> Mapping[str, Tensor]:
        """Those tensors."""
        ...


def write_model_directory(
    base: StoredBase, directory: Path, form: LinearFormat, quantization_config: Mapping[str, Any], dtype: str
) -> None:
    """Writes config.json, the tokenizer and the weights into the empty `directory`. One tensor is in memory at a time.

    Embeddings stored in 8 bits are written as float32, which holds `code * scale` exactly.
    """
    config = json.loads((base.path / "config.json").read_text(encoding="utf-8"))
    # transformers' older name of `dtype`, which would contradict it.
    config.pop("torch_dtype", None)
    config |= {"dtype": dtype, "quantization_config": dict(quantization_config)}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in (TOKENIZER, TOKENIZER_CONFIG):
        shutil.copyfile(base.tokenizer_dir / name, directory / name)
    plan = dict(_shapes(base, form))
    with SafetensorsWriter(directory / MODEL_FILE, plan) as writer:
        for name in layout.dense_tensors(base.config):
            writer.add(name, base.dense(name, plan[name][0]))
        for module in base.spec.linears:
            for name, tensor in form.tensors(module, base.int4(module)).items():
                writer.add(name, tensor)
        # Raises if a tensor is missing.
        writer.table()
    base.release()


def _shapes(base: StoredBase, form: LinearFormat) -> Iterator[tuple[str, tuple[torch.dtype, tuple[int, ...]]]]:
    group_size = base.spec.fingerprint.quant.group_size
    for name, shape in layout.dense_tensors(base.config).items():
        yield name, (base.tensor(name).dtype if name in base.tensor_names else torch.float32, shape)
    for module, (n_out, n_in) in base.spec.linears.items():
        yield from form.shapes(module, n_out, n_in, group_size).items()
