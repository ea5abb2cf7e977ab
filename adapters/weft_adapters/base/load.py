"""Opens a stored base: its spec, its configuration, and its tensors, mapped from the file and read when asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from weft_adapters.base import layout
from weft_adapters.base.config import ModelConfig
from weft_adapters.base.store import MODEL_FILE
from weft_adapters.base.writer import table_entry
from weft_adapters.int4 import Int4Weight
from weft_registry import canonical, digest
from weft_registry.base import BaseSpec
from weft_registry.errors import CorruptionError, InvalidInputError, NotFoundError


class StoredBase:
    """One base model on disk. Immutable; the tensors it gives are views of the mapped file: do not write to them."""

    def __init__(self, path: Path, spec: BaseSpec, config: ModelConfig, file: Any) -> None:
        self.path = path
        self.spec = spec
        self.config = config
        self._file = file
        self._names = frozenset(file.keys())

    @classmethod
    def open(cls, path: Path) -> StoredBase:
        """Opens the base in directory `path`.

        Raises `NotFoundError` when there is none, and `CorruptionError` when a file is damaged, a tensor is missing
        or has another shape, or config.json is not the one the fingerprint was taken over.
        """
        if not (path / "base.json").is_file():
            raise NotFoundError(f"{path}: no base model there (no base.json)", reason="BASE_NOT_FOUND")
        try:
            spec = BaseSpec.from_json(json.loads((path / "base.json").read_text(encoding="utf-8")))
            config = ModelConfig.from_json(json.loads((path / "config.json").read_text(encoding="utf-8")))
            file = safe_open(path / MODEL_FILE, framework="pt")
        except (OSError, ValueError, InvalidInputError, SafetensorError) as error:
            raise _damaged(path, str(error)) from error
        if config.sha256() != spec.fingerprint.config_sha256:
            raise _damaged(path, "config.json is not the one that was imported")
        base = cls(path, spec, config, file)
        base._check_tensors()
        return base

    @property
    def tokenizer_dir(self) -> Path:
        """Where tokenizer.json and tokenizer_config.json are."""
        return self.path

    @property
    def tensor_names(self) -> frozenset[str]:
        """The names in the file, as stored."""
        return self._names

    def int4(self, module: str) -> Int4Weight:
        """The weight of linear `module`. Raises `NotFoundError` naming the module when there is none."""
        if module not in self.spec.linears:
            raise NotFoundError(f"base {self.path.name!r} has no linear module {module!r}")
        return Int4Weight(*(self.tensor(module + part) for part in (layout.CODES, layout.SCALE, layout.MINIMUM)))

    def bias(self, module: str) -> Tensor | None:
        """The bias (N,) of linear `module`, if it has one."""
        return self.tensor(module + layout.BIAS) if module + layout.BIAS in self._names else None

    def tensor(self, name: str) -> Tensor:
        """A tensor by its stored name. Raises `NotFoundError`."""
        if name not in self._names:
            raise NotFoundError(f"base {self.path.name!r} has no tensor {name!r}")
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def dense(self, name: str, dtype: torch.dtype) -> Tensor:
        """A tensor that is not a quantized linear, in `dtype`; 8-bit ones as `codes8 * scale8`, rounded once."""
        if name in self._names:
            return self.tensor(name).to(dtype)
        codes_VK, scale_VG = self.tensor(name + layout.CODES8), self.tensor(name + layout.SCALE8)
        grouped = codes_VK.view(*scale_VG.shape, layout.GROUP8)
        return (grouped.float() * scale_VG.float()[..., None]).view(codes_VK.shape).to(dtype)

    def embedding(self, dtype: torch.dtype) -> Tensor:
        """The input embedding (vocabulary, hidden)."""
        return self.dense(layout.EMBEDDING, dtype)

    def head(self, dtype: torch.dtype) -> Tensor:
        """The output projection (vocabulary, hidden): the embedding where the config ties them."""
        return self.embedding(dtype) if self.config.tie_word_embeddings else self.dense(layout.HEAD, dtype)

    def release(self) -> None:
        """Lets the system take back the file's pages that were read; the next read maps them again.

        A process that has turned the weights into kernels would otherwise carry the whole file besides.
        """
        self._file = safe_open(self.path / MODEL_FILE, framework="pt")

    def verify(self) -> None:
        """Reads every byte of the weights and compares with the fingerprint. Raises `CorruptionError` when they differ.

        Opening does not do this: it would read the whole file before the first tensor is needed.
        """
        table = [table_entry(name, self.tensor(name)) for name in sorted(self._names)]
        found = digest.of_bytes(canonical.dumps(table))
        if found != self.spec.fingerprint.weights_sha256:
            raise _damaged(self.path, f"the weights have digest {found}, not {self.spec.fingerprint.weights_sha256}")

    def _check_tensors(self) -> None:
        expected: dict[str, tuple[int, ...]] = {}
        group_size = self.spec.fingerprint.quant.group_size
        if dict(self.spec.linears) != layout.linears(self.config):
            raise _damaged(self.path, "base.json and config.json disagree about the linear modules")
        for module, (n_out, n_in) in self.spec.linears.items():
            expected[module + layout.CODES] = (n_out, n_in // 2)
            expected[module + layout.SCALE] = expected[module + layout.MINIMUM] = (n_out, n_in // group_size)
        for name, shape in layout.dense_tensors(self.config).items():
            if name + layout.CODES8 in self._names:
                expected[name + layout.CODES8] = shape
                expected[name + layout.SCALE8] = (shape[0], shape[1] // layout.GROUP8)
            else:
                expected[name] = shape
        wrong = sorted(self._names ^ expected.keys())
        wrong += [n for n in expected if n in self._names and tuple(self._file.get_slice(n).get_shape()) != expected[n]]
        if wrong:
            raise _damaged(self.path, f"missing, unknown or misshapen tensors: {', '.join(wrong[:5])}")


def _damaged(path: Path, why: str) -> CorruptionError:
    return CorruptionError(
        f"base {path.name!r} is damaged: {why}; remove {path} and add the base again",
        reason="BASE_DAMAGED",
        metadata={"base": path.name},
    )
