"""A tiny base, artifacts for it, processes, and a real gRPC server: what the registry's tests share."""

from __future__ import annotations

import asyncio
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from weft_registry import artifact, peft_format
from weft_registry.base import BaseFingerprint, BaseSpec, QuantSpec
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.kinds import kind_schema
from weft_registry.kinds.ia3 import Ia3Params
from weft_registry.kinds.low_rank import LowRankParams
from weft_registry.kinds.prefix import PrefixParams
from weft_registry.kinds.prompt import PromptParams
from weft_registry.kinds.qalora import QaLoraParams
from weft_registry.serve.chunks import add_registry_service
from weft_registry.serve.service import RegistryServicer
from weft_registry.wire.messages import MAX_MESSAGE_BYTES
from weft_registry.wire.status import ErrorInterceptor

ROOT = Path(__file__).parents[2]
MODULES = {
    f"model.layers.{layer}.{module}": shape
    for layer in range(2)
    for module, shape in {
        "self_attn.q_proj": (32, 32),
        "self_attn.k_proj": (16, 32),
        "mlp.down_proj": (32, 64),
    }.items()
}
BASE = BaseSpec(
    fingerprint=BaseFingerprint(
        id="tiny/base",
        revision="main",
        weights_sha256="sha256:" + "1" * 64,
        config_sha256="sha256:" + "2" * 64,
        arch="LlamaForCausalLM",
        quant=QuantSpec("groupwise-affine", 4, 8, False, "float", "sha256:" + "3" * 64),
    ),
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    vocab_size=64,
    context_length=128,
    linears=MODULES,
)
PARAMS: dict[str, Any] = {
    "lora": LowRankParams(4, 8.0, False, tuple(MODULES), {"model.layers.1.mlp.down_proj": 2}, {}),
    "dora": LowRankParams(4, 8.0, False, tuple(MODULES), {"model.layers.1.mlp.down_proj": 2}, {}),
    "ia3": Ia3Params(tuple(MODULES), ("model.layers.1.mlp.down_proj",)),
    "qalora": QaLoraParams(4, 0.5, False, tuple(MODULES), {}, {}, group_size=8),
    "prefix": PrefixParams(num_virtual_tokens=5, num_layers=2, num_kv_heads=2, head_dim=8),
    "prompt": PromptParams(num_virtual_tokens=5, hidden_size=32),
}
DTYPES = {"F32": "<f4", "F16": "<f2"}


def safetensors_bytes(tensors: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    """A safetensors file, written here byte by byte."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in tensors.items():
        dtype = {"float32": "F32", "float16": "F16"}[array.dtype.name]
        raw = array.tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    return raw_safetensors(json.dumps(header).encode(), data)


def raw_safetensors(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def random_tensors(kind: str, seed: int = 0, params: Any = None) -> dict[str, np.ndarray[Any, Any]]:
    """Tensors of the shapes that the kind asks for."""
    generator = np.random.default_rng(seed)
    specs = kind_schema(kind).tensors(params or PARAMS[kind], BASE)
    return {name: generator.standard_normal(spec.shape).astype("<f4") for name, spec in specs.items()}


def make_artifact(
    directory: Path, *, kind: str = "lora", seed: int = 0, readme: str = "A card.\n", notes: str = ""
) -> Path:
    """A valid artifact of `kind` for BASE; another seed is another version. `notes` are notes.txt: a card is small."""
    directory.mkdir(parents=True)
    (directory / artifact.WEIGHTS).write_bytes(safetensors_bytes(random_tensors(kind, seed)))
    config = peft_format.to_peft(kind, PARAMS[kind], BASE)
    (directory / artifact.CONFIG).write_bytes(peft_format.config_bytes(config))
    (directory / artifact.CARD).write_text(readme)
    if notes:
        (directory / "notes.txt").write_text(notes)
    return seal(directory, kind)


def seal(directory: Path, kind: str = "lora", **changes: Any) -> Path:
    """Writes the manifest of what is in `directory` now; `changes` replaces fields of it."""
    manifest = artifact.describe(
        directory,
        kind=kind,
        adapter_block=kind_schema(kind).block(PARAMS[kind]),
        base=BASE.fingerprint,
        name="test",
        license="apache-2.0",
        created="2026-01-31T12:00:00Z",
    )
    artifact.write_manifest(directory, replace(manifest, **changes))
    return directory


def add_base(home: Home) -> None:
    """Makes BASE a base that the registry knows."""
    directory = home.bases / "tiny"
    directory.mkdir(parents=True)
    (directory / "base.json").write_text(json.dumps(BASE.as_json()))


def upload_all(registry: Any, directory: Path) -> bytes:
    """Uploads an artifact's files, valid or not, and returns its manifest's bytes."""
    manifest = artifact.read(directory)
    for file in manifest.files:
        registry.upload(directory / file.path, file.sha256, file.size)
    return manifest.canonical_bytes()


def python(script: str, *arguments: str, home: Home) -> subprocess.Popen[str]:
    """Runs a script in a process of its own, on this source tree."""
    path = os.pathsep.join([str(ROOT / "protos"), str(ROOT / "registry")])
    environment = {**os.environ, "PYTHONPATH": path, "WEFT_HOME": str(home.root)}
    environment.pop("WEFT_REGISTRY", None)
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def serving(registry: EmbeddedRegistry, *interceptors: Any, port: int = 0) -> Iterator[str]:
    """A gRPC server over `registry`, in a thread; yields its HOST:PORT."""
    ready: threading.Event = threading.Event()
    box: dict[str, Any] = {}

    async def run() -> None:
        server = grpc.aio.server(
            interceptors=[*interceptors, ErrorInterceptor()],
            options=[("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)],
        )
        add_registry_service(RegistryServicer(registry), server)
        box["target"] = f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
        box["loop"], box["stop"] = asyncio.get_running_loop(), asyncio.Event()
        await server.start()
        ready.set()
        await box["stop"].wait()
        await server.stop(0)

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield box["target"]
    finally:
        box["loop"].call_soon_threadsafe(box["stop"].set)
        thread.join(20)
