"""An artifact as a plain PEFT directory that stock PEFT loads on the dequantized base. Needs neither PEFT nor torch.

LoRA and prefix artifacts are such directories already. QA-LoRA is not: stock PEFT applies it to GPTQ layers only. But

    A pool(x) = repeat(A, group size) x

for the sum over each group, so a LoRA whose A repeats every column of ours computes the same, scaling and all.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weft_registry import artifact, headers
from weft_registry.errors import PreconditionError
from weft_registry.headers import HeaderEntry
from weft_registry.kinds import peft_schema
from weft_registry.kinds.low_rank import LowRankParams
from weft_registry.kinds.low_rank_peft import low_rank_to_peft
from weft_registry.kinds.qalora import QaLoraParams, QaLoraSchema
from weft_registry.peft_format import config_bytes, parse_config

_COMMON_KEYS = ("base_model_name_or_path", "revision", "task_type", "inference_mode")


def export_peft(source: Path, destination: Path) -> None:
    """Writes the artifact in `source` to `destination` without its manifest, QA-LoRA as LoRA.

    Raises `PreconditionError` if `destination` holds anything, `UnsupportedError` for a kind that PEFT does not have,
    and what reading an artifact raises.
    """
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise PreconditionError(f"{destination} is there already: export to another directory")
    manifest = artifact.read(source)
    peft_schema(manifest.kind)
    destination.mkdir(parents=True, exist_ok=True)
    for file in manifest.files:
        shutil.copyfile(source / file.path, destination / file.path)
    if manifest.kind == QaLoraSchema.name:
        params = QaLoraSchema().parse(manifest.adapter)
        config = _lora_config(parse_config((source / artifact.CONFIG).read_bytes()), params)
        (destination / artifact.CONFIG).write_bytes(config_bytes(config))
        _repeat_columns(source / artifact.WEIGHTS, destination / artifact.WEIGHTS, params.group_size)


def _lora_config(config: Mapping[str, Any], params: QaLoraParams) -> dict[str, Any]:
    """A stock LoRA configuration with OUR alphas: those in `config` belong to PEFT's own pooling."""
    values = {field: value for field, value in vars(params).items() if field != "group_size"}
    return {
        **{key: config[key] for key in _COMMON_KEYS if key in config},
        **low_rank_to_peft(LowRankParams(**values)),
    }


def _repeat_columns(source: Path, destination: Path, group_size: int) -> None:
    """Copies a safetensors file; every column of each A appears `group_size` times."""
    import numpy as np

    with source.open("rb") as file, destination.open("wb") as sink:
        header = headers.read_header(file, source.stat().st_size, artifact.WEIGHTS)
        sink.write(_header_bytes(header.entries, group_size, dict(header.metadata)))
        for entry in header.entries:
            data = b"".join(headers.read_tensor(file, entry))
            if _pooled(entry):
                width = headers.DTYPE_BYTES[entry.dtype]
                # Only copied, so the bits do: numpy has no bfloat16.
                data = np.frombuffer(data, f"V{width}").reshape(entry.shape).repeat(group_size, axis=1).tobytes()
            sink.write(data)


def _header_bytes(entries: tuple[HeaderEntry, ...], group_size: int, metadata: dict[str, str]) -> bytes:
    # PEFT looks for the format.
    document: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for entry in entries:
        factor = group_size if _pooled(entry) else 1
        end = offset + (entry.end - entry.start) * factor
        shape = [*entry.shape[:-1], entry.shape[-1] * factor]
        document[entry.name] = {"dtype": entry.dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(document, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw


def _pooled(entry: HeaderEntry) -> bool:
    return entry.name.endswith(".lora_A.weight")
