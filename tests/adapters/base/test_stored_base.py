"""What is on disk: written whole or not at all, and refused when it was changed afterwards."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny_models import AddedBase
from weft_adapters.base import StoredBase, add_base
from weft_adapters.base.writer import SafetensorsWriter
from weft_registry import canonical, digest
from weft_registry.base import BaseSpec, BaseStore
from weft_registry.errors import AlreadyExistsError, CorruptionError, NotFoundError
from weft_registry.home import Home

TinyBase = Callable[..., AddedBase]


@pytest.fixture
def copied(tmp_path: Path, tiny_base: TinyBase) -> Path:
    return Path(shutil.copytree(tiny_base().stored.path, tmp_path / "base"))


def test_the_fingerprint_is_over_the_sorted_table_of_the_stored_bytes(tiny_base: TinyBase) -> None:
    stored = tiny_base("qwen2", dtype="bfloat16").stored
    names = {torch.float16: "F16", torch.bfloat16: "BF16", torch.uint8: "U8"}
    table = [
        {
            "name": name,
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "sha256": digest.of_bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()),
        }
        for name, tensor in sorted(load_file(stored.path / "model.safetensors").items())
    ]
    scales = [row for row in table if str(row["name"]).endswith((".scale", ".minimum"))]
    assert len(scales) == 2 * 14
    fingerprint = stored.spec.fingerprint
    assert fingerprint.weights_sha256 == digest.of_bytes(canonical.dumps(table))
    assert fingerprint.quant.scales_sha256 == digest.of_bytes(canonical.dumps(scales))


def test_base_json_is_the_spec_the_registry_reads(tiny_base: TinyBase) -> None:
    home, name, stored = tiny_base()
    spec = BaseStore(home.bases).get(name)
    assert spec == stored.spec == BaseSpec.from_json(json.loads((stored.path / "base.json").read_text()))
    assert BaseStore(home.bases).by_weights(spec.fingerprint.weights_sha256) is not None
    assert next(iter(spec.linears)) == "model.layers.0.self_attn.q_proj"
    assert spec.linears["model.layers.1.mlp.down_proj"] == (64, 128)


def test_opening_what_is_not_there_says_so(tmp_path: Path, tiny_base: TinyBase) -> None:
    with pytest.raises(NotFoundError, match="no base model"):
        StoredBase.open(tmp_path)
    stored = tiny_base().stored
    for ask in (stored.int4, stored.tensor):
        with pytest.raises(NotFoundError, match="nothing"):
            ask("model.nothing")


def truncate(base: Path) -> None:
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-64])


def drop_tensor(base: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.minimum"]
    save_file(tensors, base / "model.safetensors")


def reshape_tensor(base: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:32].contiguous()
    save_file(tensors, base / "model.safetensors")


def edit_config(base: Path) -> None:
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 1e-3}))


def cut_spec(base: Path) -> None:
    (base / "base.json").write_text("{")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (truncate, "damaged"),
        (drop_tensor, r"model\.layers\.0\.mlp\.up_proj\.minimum"),
        (reshape_tensor, r"model\.norm\.weight"),
        (edit_config, "config.json is not the one"),
        (cut_spec, "damaged"),
        (lambda base: (base / "model.safetensors").unlink(), "damaged"),
    ],
)
def test_a_damaged_base_is_refused(harm: Callable[[Path], Any], said: str, copied: Path) -> None:
    assert StoredBase.open(copied).spec.num_layers == 2
    harm(copied)
    with pytest.raises(CorruptionError, match=said):
        StoredBase.open(copied)


def test_verify_finds_one_changed_byte_of_the_weights(copied: Path) -> None:
    StoredBase.open(copied).verify()
    path = copied / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptionError, match="the weights have digest"):
        StoredBase.open(copied).verify()


def test_importing_the_same_model_at_once_gives_one_base(tmp_path: Path, tiny_source: Callable[..., Path]) -> None:
    home, source = Home(tmp_path / "home"), str(tiny_source())
    specs: list[BaseSpec] = []
    threads = [threading.Thread(target=lambda: specs.append(add_base(home, "b", source, report=str))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(specs) == 4
    assert all(spec == specs[0] for spec in specs)
    assert BaseStore(home.bases).names() == ["b"]


def test_what_an_interrupted_import_left_is_invisible_and_removed(
    tmp_path: Path, tiny_source: Callable[..., Path]
) -> None:
    home = Home(tmp_path / "home")
    leftover = home.bases / ".importing-abc" / "b"
    leftover.mkdir(parents=True)
    (leftover / "base.json").write_text("{}")
    assert BaseStore(home.bases).names() == []
    add_base(home, "b", str(tiny_source()), report=str)
    assert BaseStore(home.bases).names() == ["b"]
    assert not leftover.parent.exists()


def test_a_directory_that_is_no_base_is_not_replaced(tmp_path: Path, tiny_source: Callable[..., Path]) -> None:
    home = Home(tmp_path / "home")
    (home.bases / "b").mkdir(parents=True)
    (home.bases / "b" / "notes.txt").write_text("mine")
    with pytest.raises(AlreadyExistsError, match="holds no base model"):
        add_base(home, "b", str(tiny_source()), report=str)
    assert (home.bases / "b" / "notes.txt").read_text() == "mine"


def test_the_writer_writes_what_safetensors_reads_in_any_order(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(3, dtype=torch.uint8),
        "b": torch.randn(2, 5),
        "c": torch.randn(4, 3).bfloat16().t(),
        "d": torch.zeros(0, 4, dtype=torch.int8),
    }
    plan = {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    with SafetensorsWriter(tmp_path / "x", plan) as writer:
        for name in ("c", "a", "d"):
            writer.add(name, tensors[name])
        with pytest.raises(ValueError, match="not written: b"):
            writer.table()
        with pytest.raises(ValueError, match="is not the planned"):
            writer.add("b", torch.randn(5, 2))
        writer.add("b", tensors["b"])
    read = load_file(tmp_path / "x")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
