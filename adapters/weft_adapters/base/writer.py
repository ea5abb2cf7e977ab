"""Writes one safetensors file tensor by tensor: memory holds one tensor, whatever the model's size.

`safetensors.torch.save_file` needs every tensor at once. Since names, dtypes and shapes are known beforehand, the
header can be written first and each tensor at its place, in any order (format: huggingface/safetensors, README).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from weft_adapters.base.checkpoint import TensorPlan
from weft_registry import digest

DTYPE_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int32: "I32",
    torch.int64: "I64",
}
"""safetensors' names of the dtypes that a stored base (and, for integers of more bits, an exported one) may hold."""


def table_entry(name: str, tensor: Tensor) -> dict[str, Any]:
    """One row of the table that a fingerprint is taken over: name, dtype, shape, digest of the little-endian bytes."""
    return {
        "name": name,
        "dtype": DTYPE_NAMES[tensor.dtype],
        "shape": list(tensor.shape),
        "sha256": digest.of_bytes(_data(tensor)),
    }


def _data(tensor: Tensor) -> memoryview:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


class SafetensorsWriter:
    """Owns one file being written. `table` is complete once every planned tensor was added."""

    def __init__(self, path: Path, plan: TensorPlan) -> None:
        self._plan = plan
        self._offsets: dict[str, int] = {}
        self._entries: dict[str, dict[str, Any]] = {}
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        # Widest elements first: every tensor is then aligned to its element, as readers that map the file need.
        for name in sorted(plan, key=lambda n: (-plan[n][0].itemsize, n)):
            dtype, shape = plan[name]
            start, end = end, end + dtype.itemsize * torch.Size(shape).numel()
            self._offsets[name] = start
            header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._data_start = 8 + len(text)
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._file.truncate(self._data_start + end)

    def add(self, name: str, tensor: Tensor) -> None:
        """Writes one planned tensor. `ValueError` when it is not the planned one, or was added before."""
        dtype, shape = self._plan[name]
        if (tensor.dtype, tuple(tensor.shape)) != (dtype, tuple(shape)) or name in self._entries:
            raise ValueError(f"{name}: {tensor.dtype} {tuple(tensor.shape)} is not the planned {dtype} {shape}")
        self._file.seek(self._data_start + self._offsets[name])
        self._file.write(_data(tensor))
        self._entries[name] = table_entry(name, tensor)

    def table(self) -> list[dict[str, Any]]:
        """(name, dtype, shape, sha256) of every tensor, sorted by name. `ValueError` while one is missing."""
        missing = sorted(set(self._plan) - set(self._entries))
        if missing:
            raise ValueError(f"not written: {', '.join(missing[:5])}")
        return [self._entries[name] for name in sorted(self._entries)]

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
