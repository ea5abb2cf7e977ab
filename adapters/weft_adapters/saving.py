"""Writes an adapter as an artifact directory: the weights, PEFT's configuration for kinds that PEFT has, the manifest,
and a model card if there is one.

The whole directory or nothing of it. Knows no registry.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from weft_adapters.base.load import StoredBase
from weft_registry import artifact, canonical, peft_format
from weft_registry import digest as digests
from weft_registry.base import BaseSpec
from weft_registry.errors import AlreadyExistsError
from weft_registry.kinds import kind_schema
from weft_registry.manifest import Manifest, Metric

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def check_new(directory: Path) -> None:
    """Raises `AlreadyExistsError` if there is anything at `directory`."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise AlreadyExistsError(f"{directory} is there already: write to another directory, or remove it")


def save(
    directory: Path,
    base: BaseSpec,
    *,
    kind: str,
    params: Any,
    tensors: Mapping[str, Tensor],
    name: str,
    license: str = "",
    tokenizer: Mapping[str, Any],
    provenance: Mapping[str, Any],
    metrics: Sequence[Metric] = (),
    card: str | None = None,
) -> Manifest:
    """Writes a new artifact and returns its manifest. Raises what `check_new` raises; then nothing is written."""
    check_new(directory)
    directory = directory.absolute()
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = directory.with_name(f".{directory.name}.{os.getpid()}")
    staging.mkdir()
    try:
        save_file({n: t.contiguous() for n, t in tensors.items()}, str(staging / artifact.WEIGHTS), {"format": "pt"})
        if artifact.has_config(kind):
            config = peft_format.to_peft(kind, params, base)
            (staging / artifact.CONFIG).write_bytes(peft_format.config_bytes(config))
        if card is not None:
            (staging / artifact.CARD).write_text(card, encoding="utf-8")
        manifest = artifact.describe(
            staging,
            kind=kind,
            adapter_block=kind_schema(kind).block(params),
            base=base.fingerprint,
            name=name,
            license=license,
            tokenizer=tokenizer,
            provenance=provenance,
            metrics=metrics,
        )
        artifact.write_manifest(staging, manifest)
        # safetensors writes for its owner alone; who may read the rest of the artifact may read the weights.
        shutil.copymode(staging / artifact.MANIFEST, staging / artifact.WEIGHTS)
        staging.replace(directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def tokenizer_block(stored: StoredBase) -> dict[str, Any]:
    """The manifest's `tokenizer`: which tokenizer the adapter expects."""
    files = {
        name: digests.of_file(stored.tokenizer_dir / name)
        for name in _TOKENIZER_FILES
        if (stored.tokenizer_dir / name).is_file()
    }
    return {"files_sha256": digests.of_bytes(canonical.dumps(files)), "vocab_size": stored.spec.vocab_size}
