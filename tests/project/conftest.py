"""What the tests of the repository itself share: its root, and its files."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from weft_registry import artifact
from weft_registry.base import BaseFingerprint, QuantSpec

SOURCES = ("protos", "registry", "client", "adapters", "trainer", "server", "demo", "benchmarks")
OTHERS = ("docs", "tests", ".ci")
SUFFIXES = {".py", ".pyi", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".jsonl", ".proto", ".cfg", ""}


def _files(root: Path, *parts: str) -> Iterator[Path]:
    # By walking and not by asking git: the tests also pass in an unpacked archive.
    for part in parts:
        for path in sorted((root / part).rglob("*")):
            if path.is_file() and path.suffix in SUFFIXES and "__pycache__" not in path.parts:
                yield path


def _safetensors(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """A file of float32 zeros. Written here, because the safetensors library is what must not be needed."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": (start, end)}
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + bytes(end)


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return Path(__file__).parents[2]


@pytest.fixture(scope="session")
def text_files(root: Path) -> list[Path]:
    """Every text file of the repository: sources, tests, documents, configuration."""
    top = [path for path in sorted(root.iterdir()) if path.is_file() and path.suffix in SUFFIXES]
    return [*top, *_files(root, *SOURCES, *OTHERS)]


@pytest.fixture(scope="session")
def source_modules(root: Path) -> list[Path]:
    """Every Python module that is ours to write: no tests, no generated code."""
    return [path for path in _files(root, *SOURCES) if path.suffix == ".py" and "_pb2" not in path.name]


@pytest.fixture(scope="session")
def documents(root: Path) -> list[Path]:
    """Every document in Markdown."""
    return [*sorted(root.glob("*.md")), *sorted((root / "docs").rglob("*.md"))]


@pytest.fixture
def small_artifact(tmp_path: Path) -> Path:
    """A LoRA adapter of rank 2 on one module, for a base that this machine does not have."""
    module, rank = "model.layers.0.self_attn.q_proj", 2
    tensors = {
        f"base_model.model.{module}.lora_A.weight": (rank, 8),
        f"base_model.model.{module}.lora_B.weight": (4, rank),
    }
    directory = tmp_path / "artifact"
    directory.mkdir()
    (directory / "adapter_model.safetensors").write_bytes(_safetensors(tensors))
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 4, "target_modules": [module]}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    digest = "sha256:" + "0" * 64
    quant = QuantSpec("groupwise-affine", 4, 4, symmetric=False, zero_point="float", scales_sha256=digest)
    block = {"r": rank, "alpha": "4", "use_rslora": False, "target_modules": [module]}
    manifest = artifact.describe(
        directory,
        kind="lora",
        adapter_block={**block, "rank_pattern": {}, "alpha_pattern": {}},
        base=BaseFingerprint("nobody/nothing", "", digest, digest, "llama", quant),
        name="small",
    )
    artifact.write_manifest(directory, manifest)
    return directory
