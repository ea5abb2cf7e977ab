"""GGUF files written here, block by block, so that every number in them is known."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from weft_adapters.base import add_base, layout
from weft_adapters.base.gguf import read_gguf
from weft_adapters.base.q4 import split_q4_1, split_q8_0, unpermute_rows
from weft_registry.base import BaseStore
from weft_registry.errors import InvalidInputError, UnsupportedError
from weft_registry.home import Home

HIDDEN, INNER, HEADS, KV_HEADS, VOCABULARY = 64, 96, 4, 2, 40
SHAPES = {
    "attn_q.weight": (64, HIDDEN),
    "attn_k.weight": (32, HIDDEN),
    "attn_v.weight": (32, HIDDEN),
    "attn_output.weight": (HIDDEN, 64),
    "ffn_gate.weight": (INNER, HIDDEN),
    "ffn_up.weight": (INNER, HIDDEN),
    "ffn_down.weight": (HIDDEN, INNER),
}
HF = {"attn_q.weight": "self_attn.q_proj", "attn_k.weight": "self_attn.k_proj", "ffn_down.weight": "mlp.down_proj"}


class GgufFile:
    """A small one-layer model; a test changes the parts it is about and then writes it."""

    def __init__(self, arch: str = "llama") -> None:
        self.arch = arch
        rng = np.random.default_rng(0)
        self.metadata: dict[str, Any] = {
            "block_count": 1,
            "context_length": 128,
            "embedding_length": HIDDEN,
            "feed_forward_length": INNER,
            "attention.head_count": HEADS,
            "attention.head_count_kv": KV_HEADS,
            "vocab_size": VOCABULARY,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.freq_base": 10000.0,
        }
        self.types = {f"blk.0.{name}": Type.Q4_1 for name in SHAPES} | {"token_embd.weight": Type.Q8_0}
        self.dense: dict[str, np.ndarray] = {
            f"blk.0.{name}": rng.standard_normal(shape, dtype=np.float32) for name, shape in SHAPES.items()
        }
        self.dense["token_embd.weight"] = rng.standard_normal((VOCABULARY, HIDDEN), dtype=np.float32)
        for name in ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"):
            self.dense[name] = 1 + 0.1 * rng.standard_normal(HIDDEN, dtype=np.float32)

    def write(self, path: Path) -> Path:
        writer = gguf.GGUFWriter(path, self.arch)
        for key, value in self.metadata.items():
            adders: dict[type, Callable[[str, Any], None]] = {
                int: writer.add_uint32,
                float: writer.add_float32,
                str: writer.add_string,
            }
            adders[type(value)](f"{self.arch}.{key}", value)
        for name, dense in self.dense.items():
            kind = self.types.get(name, Type.F32)
            writer.add_tensor(name, gguf.quants.quantize(dense, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def stored(self, path: Path) -> dict[str, torch.Tensor]:
        checkpoint = read_gguf(self.write(path), 32)
        tensors = {name: tensor.clone() for name, tensor in checkpoint.tensors()}
        assert {n: (t.dtype, tuple(t.shape)) for n, t in tensors.items()} == dict(checkpoint.plan)
        return tensors


def dequantized(tensors: dict[str, torch.Tensor], module: str) -> np.ndarray:
    codes = tensors[module + layout.CODES]
    code_NK = torch.stack((codes & 15, codes >> 4), -1).view(len(codes), -1).float()
    scale, low = (tensors[module + part].float().repeat_interleave(32, 1) for part in (layout.SCALE, layout.MINIMUM))
    return np.asarray(scale * code_NK + low)


def test_a_q4_1_block_is_split_as_the_format_says() -> None:
    block = np.concatenate((np.array([0.5, -3.0], np.float16).view(np.uint8), np.arange(16, dtype=np.uint8) * 16 + 3))
    codes, d, m = split_q4_1(block[None])
    assert (d.tolist(), m.tolist()) == ([[0.5]], [[-3.0]])
    unpacked = [code for byte in codes[0].tolist() for code in (byte & 15, byte >> 4)]
    assert unpacked == [3] * 16 + list(range(16))


def test_a_q8_0_block_is_split_as_the_format_says() -> None:
    block = np.concatenate(
        (np.array([0.25], np.float16).view(np.uint8), np.arange(-16, 16, dtype=np.int8).view(np.uint8))
    )
    codes, d = split_q8_0(block[None])
    assert (codes.tolist(), d.tolist()) == ([list(range(-16, 16))], [[0.25]])


def test_unpermuting_undoes_the_converter() -> None:
    heads, rows = 3, np.arange(24)
    # convert_hf_to_gguf.py's own formula.
    permuted = rows.reshape(heads, 2, len(rows) // heads // 2).swapaxes(1, 2).reshape(rows.shape)
    assert not np.array_equal(permuted, rows)
    assert np.array_equal(unpermute_rows(permuted, heads), rows)


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_weights_equal_the_reference_dequantization(arch: str, tmp_path: Path) -> None:
    file = GgufFile(arch)
    if arch == "qwen2":
        for name, rows in (("attn_q", 64), ("attn_k", 32), ("attn_v", 32)):
            file.dense[f"blk.0.{name}.bias"] = np.arange(rows, dtype=np.float32)
    if arch == "qwen3":
        file.dense |= {f"blk.0.attn_{n}_norm.weight": np.arange(16, dtype=np.float32) for n in ("q", "k")}
        file.metadata |= {"attention.key_length": 16, "attention.value_length": 16}
    tensors = file.stored(tmp_path / "m.gguf")
    for name, module in HF.items():
        dense = file.dense[f"blk.0.{name}"]
        expected = gguf.quants.dequantize(gguf.quants.quantize(dense, Type.Q4_1), Type.Q4_1)
        if arch == "llama" and module.endswith(("q_proj", "k_proj")):
            expected = unpermute_rows(expected, HEADS if module.endswith("q_proj") else KV_HEADS)
        assert np.array_equal(dequantized(tensors, f"model.layers.0.{module}"), expected)
    if arch == "qwen2":
        assert tensors["model.layers.0.self_attn.q_proj.bias"].tolist() == list(range(64))


def test_biases_of_permuted_rows_are_unpermuted_with_them(tmp_path: Path) -> None:
    file = GgufFile()
    for name, rows in (("attn_q", 64), ("attn_k", 32), ("attn_v", 32), ("attn_output", HIDDEN)):
        file.dense[f"blk.0.{name}.bias"] = np.arange(rows, dtype=np.float32)
    tensors = file.stored(tmp_path / "m.gguf")
    attention = "model.layers.0.self_attn"
    assert tensors[f"{attention}.k_proj.bias"].tolist() == unpermute_rows(np.arange(32), KV_HEADS).tolist()
    assert tensors[f"{attention}.v_proj.bias"].tolist() == list(range(32))


def test_other_types_outside_the_linears_are_kept_or_dequantized(tmp_path: Path) -> None:
    file = GgufFile()
    file.dense["output.weight"] = file.dense["token_embd.weight"] * 2
    file.types |= {"output.weight": Type.Q5_0, "token_embd.weight": Type.F16, "output_norm.weight": Type.BF16}
    tensors = file.stored(tmp_path / "m.gguf")
    expected = gguf.quants.dequantize(gguf.quants.quantize(file.dense["output.weight"], Type.Q5_0), Type.Q5_0)
    assert np.array_equal(tensors[layout.HEAD].numpy(), expected)
    assert torch.equal(tensors[layout.EMBEDDING], torch.from_numpy(file.dense["token_embd.weight"]).half())
    assert torch.equal(tensors["model.norm.weight"], torch.from_numpy(file.dense["output_norm.weight"]).bfloat16())


@pytest.mark.parametrize("kind", [Type.Q4_0, Type.Q8_0, Type.F16])
def test_a_linear_of_another_type_is_refused_by_name_and_type(kind: Type, tmp_path: Path) -> None:
    file = GgufFile()
    file.types["blk.0.ffn_up.weight"] = kind
    with pytest.raises(UnsupportedError, match=rf"blk\.0\.ffn_up\.weight is {kind.name}"):
        read_gguf(file.write(tmp_path / "m.gguf"), 32)


def test_nan_scales_are_refused_by_name(tmp_path: Path) -> None:
    file = GgufFile()
    file.dense["blk.0.attn_v.weight"][0, 0] = np.nan
    with pytest.raises(InvalidInputError, match=r"blk\.0\.attn_v\.weight has NaN"), np.errstate(invalid="ignore"):
        file.stored(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"rope.scaling.type": "yarn"}, "rope.scaling.type = 'yarn'"),
        ({"rope.dimension_count": 8}, "rope.dimension_count = 8"),
        ({"expert_count": 4}, "expert_count = 4"),
        ({"attention.sliding_window": 64}, "attention.sliding_window = 64"),
        ({"block_count": 2}, r"missing: model\.layers\.1"),
        ({"embedding_length": 32}, "shape|multiple|missing"),
    ],
)
def test_metadata_the_decoder_cannot_follow_is_refused(metadata: dict[str, Any], said: str, tmp_path: Path) -> None:
    file = GgufFile()
    file.metadata |= metadata
    with pytest.raises((UnsupportedError, InvalidInputError), match=said):
        read_gguf(file.write(tmp_path / "m.gguf"), 32)


def test_unknown_architectures_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="architecture 'gemma'"):
        read_gguf(GgufFile("gemma").write(tmp_path / "m.gguf"), 32)


def test_rotary_factors_are_refused_unless_they_do_nothing(tmp_path: Path) -> None:
    file = GgufFile()
    file.dense["rope_freqs.weight"] = np.ones(8, np.float32)
    assert "rope_freqs.weight" not in file.stored(tmp_path / "ones.gguf")
    file.dense["rope_freqs.weight"][3] = 8
    with pytest.raises(UnsupportedError, match=r"rope_freqs\.weight"):
        read_gguf(file.write(tmp_path / "scaled.gguf"), 32)


def test_linear_rope_scaling_is_read(tmp_path: Path) -> None:
    file = GgufFile()
    file.metadata |= {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    config = read_gguf(file.write(tmp_path / "m.gguf"), 32).config
    assert config.rope_scaling == {"rope_type": "linear", "factor": 4.0}


@pytest.mark.parametrize("keep", [0, 3, 200, 0.5, 0.99])
def test_truncated_files_are_refused(keep: float, tmp_path: Path) -> None:
    path = GgufFile().write(tmp_path / "m.gguf")
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if isinstance(keep, int) else keep * len(data))])
    with pytest.raises(InvalidInputError, match=r"m\.gguf: not a whole GGUF file"):
        read_gguf(path, 32)


def test_without_transformers_the_import_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, home = GgufFile().write(tmp_path / "m.gguf"), Home(tmp_path / "home")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'weft\[train\]'"):
        add_base(home, "b", str(path), report=str)
    assert BaseStore(home.bases).names() == []


def test_another_group_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="groups are 32"):
        read_gguf(GgufFile().write(tmp_path / "m.gguf"), 64)
