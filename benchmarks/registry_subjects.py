"""What the registry's benchmark moves: large artifacts and small ones, and the server that it moves them to."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from weft_registry import artifact, peft_format
from weft_registry.base import BaseFingerprint, BaseSpec, QuantSpec
from weft_registry.home import Home
from weft_registry.kinds import kind_schema
from weft_registry.kinds.low_rank import LowRankParams

RANK = 1024
WIDTH = 8192
LARGE_MODULE_BYTES = 2 * RANK * WIDTH * 2
"""A and B of one module of the large artifact, in float16."""
NAMESPACE = "bench"
ROOT = Path(__file__).parents[1]


def base_spec(modules: Sequence[str], width: int) -> BaseSpec:
    """A base that exists on paper: nothing here computes with it."""
    fingerprint = BaseFingerprint(
        "bench/base",
        "main",
        "sha256:" + "1" * 64,
        "sha256:" + "2" * 64,
        "LlamaForCausalLM",
        QuantSpec("groupwise-affine", 4, 32, False, "float", "sha256:" + "3" * 64),
    )
    linears = dict.fromkeys(modules, (width, width))
    return BaseSpec(fingerprint, width, len(modules), 8, 8, width // 8, 32000, 2048, linears)


def make_artifact(directory: Path, modules: int, rank: int, width: int, seed: int) -> Path:
    """A valid LoRA of random finite numbers: two tensors of rank x width float16 for each module."""
    directory.mkdir(parents=True)
    names = [f"model.layers.{index}.self_attn.q_proj" for index in range(modules)]
    params, base = LowRankParams(rank, float(rank), False, tuple(names), {}, {}), base_spec(names, width)
    header: dict[str, Any] = {}
    at = 0
    for name, spec in kind_schema("lora").tensors(params, base).items():
        size = 2 * rank * width
        header[name] = {"dtype": "F16", "shape": list(spec.shape), "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)  # As the library that writes such files does.
    generator = np.random.default_rng(seed)
    with (directory / artifact.WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for _ in header:
            # Without the highest bit of the exponent they are all finite.
            file.write((generator.integers(0, 1 << 16, rank * width, np.uint16) & 0xBFFF).tobytes())
        file.flush()
        os.fsync(file.fileno())
    (directory / artifact.CONFIG).write_bytes(peft_format.config_bytes(peft_format.to_peft("lora", params, base)))
    (directory / artifact.CARD).write_text(f"Adapter {seed}.\n")
    manifest = artifact.describe(
        directory, kind="lora", adapter_block=kind_schema("lora").block(params), base=base.fingerprint, name="bench"
    )
    artifact.write_manifest(directory, manifest)
    return directory


@contextmanager
def serving(home: Home) -> Iterator[tuple[str, str, int]]:
    """`weft registry serve` in a process of its own: HOST:PORT of gRPC and of HTTP, and the process's id."""
    command = [sys.executable, "-m", "weft_client.cli", "registry", "serve", "--port", "0", "--http-port", "0"]
    environment = {**os.environ, "WEFT_HOME": str(home.root)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(2)]
            found = re.fullmatch(r"http on (\S+)\nready on (\S+)\n", "".join(lines))
            if found is None:
                raise RuntimeError(f"the registry did not start: {lines}")
            yield found[2], found[1], process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
