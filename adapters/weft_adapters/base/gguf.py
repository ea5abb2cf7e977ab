"""Reads a GGUF file whose linear weights are Q4_1, exactly: the stored base is the file's numbers in another order.

Q4_1 linears keep their codes, d and m; Q8_0 embeddings and heads keep their codes and d; F32, F16 and BF16 tensors
stay as they are. Other quantized tensors that are not linear weights of a block are dequantized to float32.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader, ReaderTensor
from gguf.quants import dequantize
from torch import Tensor

from weft_adapters.base import gguf_config, layout, q4, tokenizer_files
from weft_adapters.base.checkpoint import Checkpoint
from weft_adapters.base.config import ModelConfig
from weft_registry.errors import InvalidInputError, UnsupportedError

_BLOCK = re.compile(r"blk\.(\d+)\.([a-z_]+)\.(weight|bias)")
_IN_BLOCK = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
_OUTSIDE = {
    "token_embd.weight": layout.EMBEDDING,
    "output_norm.weight": "model.norm.weight",
    "output.weight": layout.HEAD,
}
_PLAIN = {Type.F32: torch.float32, Type.F16: torch.float16, Type.BF16: torch.bfloat16}


def check_grid(name: str, group_size: int, bits: int) -> None:
    """Raises `InvalidInputError` for a group size or a width that no GGUF file is read with. `name`: of the file."""
    if group_size != q4.BLOCK:
        raise InvalidInputError(
            f"{name}: a GGUF file's groups are 32 weights, and are taken as they are; add it so, and then quantize the "
            f"base again: weft base requantize NAME NEW --group-size {group_size}"
        )
    if bits != 4:
        raise InvalidInputError(
            f"{name}: a GGUF file's linears have 4 bits, and are taken as they are; add it so, and then quantize the "
            f"base again: weft base requantize NAME NEW --bits {bits}"
        )


def read_gguf(path: Path, group_size: int, bits: int = 4) -> Checkpoint:
    """The model in a GGUF file, its linears as they are: 4 bits in groups of 32.

    Raises `InvalidInputError` for a damaged file, a missing or unknown tensor, a wrong shape, NaN, or a group size
    or width other than the file's; `UnsupportedError` for an architecture, a setting or a linear's type that cannot be
    kept exactly.
    """
    check_grid(path.name, group_size, bits)
    try:
        reader = GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError, OSError) as error:
        raise InvalidInputError(f"{path.name}: not a whole GGUF file: {error}") from error
    by_name = {tensor.name: tensor for tensor in reader.tensors}
    _refuse_rope_factors(by_name.pop("rope_freqs.weight", None), path.name)
    content = gguf_config.config_json(metadata, by_name, path.name)
    config = ModelConfig.from_json(content, path.name)
    model = _GgufModel(path.name, config, by_name)
    return Checkpoint(
        config_json=content,
        config=config,
        group_size=group_size,
        bits=4,
        plan=model.plan(),
        tensors=model.tensors,
        write_tokenizer=lambda target: tokenizer_files.write_from_gguf(path, target, config),
        default_id=path.stem,
    )


def _refuse_rope_factors(tensor: ReaderTensor | None, what: str) -> None:
    # llama.cpp stores llama3's and longrope's scaling as per-frequency divisors; ones mean no scaling.
    if tensor is not None and not bool(np.all(np.asarray(tensor.data) == 1)):
        raise UnsupportedError(
            f"{what}: rope_freqs.weight scales the rotary frequencies, which a GGUF import does not read; import the "
            "original safetensors model"
        )


class _GgufModel:
    """The tensors of one file under their stored names. Holds memory-mapped views only."""

    def __init__(self, what: str, config: ModelConfig, by_name: dict[str, ReaderTensor]) -> None:
        self._what = what
        self._config = config
        self._by_hf = {self._hf_name(name): tensor for name, tensor in by_name.items()}
        self._linears = layout.linears(config)
        shapes: dict[str, tuple[int, ...]] = {f"{m}.weight": shape for m, shape in self._linears.items()}
        shapes |= layout.dense_tensors(config)
        unknown, missing = self._by_hf.keys() - shapes.keys(), shapes.keys() - self._by_hf.keys()
        if unknown or missing:
            raise InvalidInputError(
                f"{what}: the tensors are not those of a {config.arch} decoder with {config.num_layers} layers: "
                f"unknown: {_some(unknown)}; missing: {_some(missing)}"
            )
        for name, tensor in self._by_hf.items():
            found = tuple(int(n) for n in reversed(tensor.shape))
            if found != shapes[name]:
                raise InvalidInputError(f"{what}: {tensor.name} has shape {found}, the metadata says {shapes[name]}")
        self._shapes = shapes

    def plan(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """The stored tensors. Raises `UnsupportedError` for a linear that is not Q4_1."""
        plan: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        for name, tensor in self._by_hf.items():
            shape = self._shapes[name]
            if self._is_linear(name):
                if tensor.tensor_type != Type.Q4_1:
                    raise UnsupportedError(
                        f"{self._what}: {tensor.name} is {tensor.tensor_type.name}; only Q4_1 linears can be kept "
                        "exactly (quantize the original with llama-quantize to Q4_1, or import its safetensors)"
                    )
                module, groups = name.removesuffix(".weight"), (shape[0], shape[1] // q4.BLOCK)
                plan[module + layout.CODES] = (torch.uint8, (shape[0], shape[1] // 2))
                plan[module + layout.SCALE] = plan[module + layout.MINIMUM] = (torch.float16, groups)
            elif tensor.tensor_type == Type.Q8_0:
                plan[name + layout.CODES8] = (torch.int8, shape)
                plan[name + layout.SCALE8] = (torch.float16, (shape[0], shape[1] // q4.BLOCK))
            else:
                plan[name] = (_PLAIN.get(tensor.tensor_type, torch.float32), shape)
        return plan

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every stored tensor, one at a time. Raises `InvalidInputError` naming a tensor with NaN or infinity."""
        for name, tensor in self._by_hf.items():
            rows = self._row_order(name)
            if self._is_linear(name):
                module = name.removesuffix(".weight")
                codes, scale, minimum = (rows(part) for part in q4.split_q4_1(np.asarray(tensor.data)))
                self._finite(tensor, scale, minimum)
                yield module + layout.CODES, torch.from_numpy(codes)
                yield module + layout.SCALE, torch.from_numpy(scale)
                yield module + layout.MINIMUM, torch.from_numpy(minimum)
            elif tensor.tensor_type == Type.Q8_0:
                codes8, scale8 = q4.split_q8_0(np.asarray(tensor.data))
                self._finite(tensor, scale8)
                yield name + layout.CODES8, torch.from_numpy(codes8)
                yield name + layout.SCALE8, torch.from_numpy(scale8)
            else:
                dense = rows(self._dense(tensor))
                if tensor.tensor_type == Type.BF16:
                    value = torch.from_numpy(np.array(dense)).view(torch.bfloat16)
                else:
                    value = torch.from_numpy(np.array(dense))
                if not bool(torch.isfinite(value).all()):
                    raise InvalidInputError(f"{self._what}: {tensor.name} has NaN or infinite values")
                yield name, value

    def _is_linear(self, name: str) -> bool:
        return name.endswith(".weight") and name.removesuffix(".weight") in self._linears

    def _row_order(self, name: str) -> Callable[[Any], Any]:
        leaf = name.split(".")[-2]
        if self._config.arch != "llama" or leaf not in ("q_proj", "k_proj"):
            return np.ascontiguousarray
        heads = self._config.num_heads if leaf == "q_proj" else self._config.num_kv_heads
        return lambda part: np.ascontiguousarray(q4.unpermute_rows(part, heads))

    def _dense(self, tensor: ReaderTensor) -> Any:
        shape = tuple(int(n) for n in reversed(tensor.shape))
        data = np.asarray(tensor.data)
        if tensor.tensor_type == Type.BF16:
            return data.view(np.int16).reshape(shape)
        if tensor.tensor_type in _PLAIN:
            return data
        try:
            return dequantize(data, tensor.tensor_type).astype(np.float32, copy=False)
        except NotImplementedError as error:
            raise UnsupportedError(
                f"{self._what}: {tensor.name} is {tensor.tensor_type.name}, which cannot be dequantized"
            ) from error

    def _finite(self, tensor: ReaderTensor, *parts: Any) -> None:
        if not all(bool(np.isfinite(part).all()) for part in parts):
            raise InvalidInputError(f"{self._what}: {tensor.name} has NaN or infinite scales or minima")

    @staticmethod
    def _hf_name(name: str) -> str:
        if name in _OUTSIDE:
            return _OUTSIDE[name]
        match = _BLOCK.fullmatch(name)
        if match is None or match[2] not in _IN_BLOCK:
            return name
        return f"model.layers.{match[1]}.{_IN_BLOCK[match[2]]}.{match[3]}"


def _some(names: set[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return ", ".join(listed[:5]) + more if listed else "none"
