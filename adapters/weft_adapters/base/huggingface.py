"""Reads a Hugging Face model directory in safetensors, sharded or not, quantizing its block linears on the way.

Embeddings, head, norms and biases keep their own dtype. One tensor is in memory at a time; the files are mapped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from weft_adapters.base import layout, tokenizer_files
from weft_adapters.base.checkpoint import Checkpoint
from weft_adapters.base.config import ModelConfig
from weft_adapters.base.quantize import quantize
from weft_registry.errors import InvalidInputError, UnsupportedError

_INDEX = "model.safetensors.index.json"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NOT_STORED = ("_name_or_path", "_model_name_or_path", "transformers_version", "auto_map")


def read_directory(path: Path, group_size: int, bits: int = 4) -> Checkpoint:
    """The model in a directory with config.json and *.safetensors, its linears quantized to `bits`.

    Raises `InvalidInputError` for a damaged file, a missing or unknown tensor, a wrong shape, NaN, or a group size
    that does not divide a linear; `UnsupportedError` for an architecture, a setting or a dtype that is not offered.
    """
    content = _config(path)
    config = ModelConfig.from_json(content)
    model = _Shards(path, config, group_size, bits)
    return Checkpoint(
        config_json=content,
        config=config,
        group_size=group_size,
        bits=bits,
        plan=model.plan(),
        tensors=model.tensors,
        write_tokenizer=lambda target: tokenizer_files.write_from_directory(path, target, config),
        default_id=path.name,
    )


class FloatModel:
    """The model in a directory with config.json and *.safetensors as it is, nothing quantized: for comparing with a
    stored base. The files are mapped; a tensor is read when asked for."""

    def __init__(self, path: Path) -> None:
        """Raises what `read_directory` raises, except for a group size."""
        self.path = path
        self.config = ModelConfig.from_json(_config(path))
        # A group of one divides everything: shapes and dtypes are checked, and nothing is quantized.
        self._model = _Shards(path, self.config, group_size=1)
        self._model.plan()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the weights."""
        return tuple(_shard_files(self.path))

    def tensor(self, name: str) -> Tensor:
        """A tensor in its own dtype, by the name that transformers gives it. Raises `InvalidInputError` naming one
        with NaN or infinity."""
        tensor = self._model.read(name)
        if not bool(torch.isfinite(tensor).all()):
            raise InvalidInputError(f"{self.path.name}: {name} has NaN or infinite values")
        return tensor


def read_linears(path: Path, modules: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """The weights (out, in) of linear `modules` as the files hold them, one at a time.

    Raises `InvalidInputError` for a damaged file, a tensor that is not there, or one that is not in floats.
    """
    files = {file.name: _open(file) for file in _shard_files(path)}
    where = {name: file for file, opened in files.items() for name in opened.keys()}  # noqa: SIM118
    for module in modules:
        name = f"{module}.weight"
        if name not in where:
            raise InvalidInputError(f"{path}: no tensor {name}")
        tensor: Tensor = files[where[name]].get_tensor(name)
        if not tensor.is_floating_point():
            raise InvalidInputError(f"{path}: {name} is {tensor.dtype}, not in floats")
        yield module, tensor


def _config(path: Path) -> dict[str, Any]:
    """config.json, with the end tokens of generation_config.json where it has them: generation stops at those."""
    content = {k: v for k, v in _read_object(path / "config.json").items() if k not in _NOT_STORED}
    if (path / "generation_config.json").is_file():
        eos = _read_object(path / "generation_config.json").get("eos_token_id")
        if eos is not None:
            content["eos_token_id"] = eos
    return content


class _Shards:
    """The tensors of one or several safetensors files, each bound to its place in the model."""

    def __init__(self, path: Path, config: ModelConfig, group_size: int, bits: int = 4) -> None:
        self._bits = bits
        self._linears = layout.linears(config)
        self._group_size = group_size
        self._shapes: dict[str, tuple[int, ...]] = {f"{m}.weight": s for m, s in self._linears.items()}
        self._shapes |= layout.dense_tensors(config)
        self._files = {file.name: _open(file) for file in _shard_files(path)}
        self._where = {name: file for file, opened in self._files.items() for name in opened.keys()}  # noqa: SIM118
        self._drop_tied_head(config)
        # Older checkpoints carry the rotary frequencies, which follow from the config.
        named = {name for name in self._where if not name.endswith("rotary_emb.inv_freq")}
        unknown, missing = named - self._shapes.keys(), self._shapes.keys() - named
        if unknown or missing:
            raise InvalidInputError(
                f"{path.name}: the tensors are not those of a {config.arch} decoder with {config.num_layers} layers: "
                f"unknown: {_some(unknown)}; missing: {_some(missing)}"
            )

    def plan(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """The stored tensors. Raises `InvalidInputError` for a wrong shape, `UnsupportedError` for a dtype."""
        plan: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        for name, shape in self._shapes.items():
            part = self._files[self._where[name]].get_slice(name)
            if tuple(part.get_shape()) != shape:
                raise InvalidInputError(f"{name} has shape {tuple(part.get_shape())}, the config says {shape}")
            dtype = _DTYPES.get(part.get_dtype())
            if dtype is None:
                raise UnsupportedError(f"{name} is {part.get_dtype()}; supported are {', '.join(_DTYPES)}")
            module = name.removesuffix(".weight")
            if module not in self._linears:
                plan[name] = (dtype, shape)
                continue
            if shape[1] % self._group_size:
                raise InvalidInputError(
                    f"{name}: {shape[1]} inputs do not divide into groups of {self._group_size}; choose a smaller one"
                )
            plan[module + layout.CODES] = (torch.uint8, (shape[0], shape[1] // 2))
            groups = (shape[0], shape[1] // self._group_size)
            plan[module + layout.SCALE] = plan[module + layout.MINIMUM] = (torch.float16, groups)
        return plan

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every stored tensor, one at a time. Raises `InvalidInputError` naming a tensor with NaN or infinity."""
        for name in self._shapes:
            tensor = self.read(name)
            module = name.removesuffix(".weight")
            if module in self._linears:
                weight = quantize(tensor, self._group_size, name, self._bits)
                yield module + layout.CODES, weight.codes_NH
                yield module + layout.SCALE, weight.scale_NG
                yield module + layout.MINIMUM, weight.minimum_NG
                continue
            if not bool(torch.isfinite(tensor).all()):
                raise InvalidInputError(f"{name} has NaN or infinite values")
            yield name, tensor

    def read(self, name: str) -> Tensor:
        """A tensor as it is in its file."""
        tensor: Tensor = self._files[self._where[name]].get_tensor(name)
        return tensor

    def _drop_tied_head(self, config: ModelConfig) -> None:
        """A tied model may still store its head; it must then be the embedding."""
        if not config.tie_word_embeddings or layout.HEAD not in self._where or layout.EMBEDDING not in self._where:
            return
        if not torch.equal(self.read(layout.HEAD), self.read(layout.EMBEDDING)):
            raise InvalidInputError(
                f"config.json ties {layout.HEAD} to {layout.EMBEDDING}, but the files hold different ones; set "
                "tie_word_embeddings to false, or remove the head"
            )
        del self._where[layout.HEAD]


def _shard_files(path: Path) -> list[Path]:
    index = path / _INDEX
    if not index.is_file():
        whole = path / "model.safetensors"
        files = sorted(path.glob("*.safetensors"))
        if not whole.is_file() and len(files) > 1:
            raise InvalidInputError(
                f"{path.name}: several *.safetensors but no {_INDEX} that says which belong together"
            )
        return [whole] if whole.is_file() else files
    table = _read_object(index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise InvalidInputError(f"{_INDEX}: no weight_map from tensor names to files")
    files = [path / name for name in sorted(set(table.values()))]
    for file in files:
        if file.parent != path or not file.is_file():
            raise InvalidInputError(f"{_INDEX} names {file.name!r}, which is not beside it")
    return files


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InvalidInputError(f"{file.name}: not a whole safetensors file: {error}") from error


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidInputError(
            f"{path.parent}: no {path.name} there; expected a Hugging Face model directory"
        ) from None
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path.name}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidInputError(f"{path.name}: expected an object")
    return value


def _some(names: set[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return ", ".join(listed[:5]) + more if listed else "none"
