"""Writes a model over a stored base as a plain float directory, as transformers loads it and `weft extract` reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from weft_adapters.base import layout
from weft_adapters.base.load import StoredBase
from weft_adapters.base.store import MODEL_FILE
from weft_adapters.base.tokenizer_files import TOKENIZER, TOKENIZER_CONFIG
from weft_adapters.base.writer import SafetensorsWriter


def write_dense_directory(
    base: StoredBase, directory: Path, read: Callable[[str], Tensor], dtype: torch.dtype = torch.float32
) -> None:
    """Writes config.json, the tokenizer and every weight into the empty `directory`, one tensor at a time.

    `read` gives a weight by the name that transformers gives it.
    """
    config = json.loads((base.path / "config.json").read_text(encoding="utf-8"))
    # transformers' older name of `dtype`, which would contradict it.
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in (TOKENIZER, TOKENIZER_CONFIG):
        shutil.copyfile(base.tokenizer_dir / name, directory / name)
    shapes: dict[str, tuple[int, ...]] = {f"{module}.weight": shape for module, shape in base.spec.linears.items()}
    shapes |= layout.dense_tensors(base.config)
    with SafetensorsWriter(directory / MODEL_FILE, {name: (dtype, shape) for name, shape in shapes.items()}) as writer:
        for name in shapes:
            writer.add(name, read(name).to(dtype))
        # Raises if a tensor is missing.
        writer.table()
    base.release()
