"""A trained adapter as an artifact directory: PEFT's two files, a model card and the manifest; all of it or nothing.

Tensors are float32: the precision of the master weights they were trained in. A server computes in its own dtype.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import weft
from weft_adapters.base.load import StoredBase
from weft_registry import artifact, canonical, peft_format
from weft_registry import digest as digests
from weft_registry.errors import InvalidInputError, PreconditionError
from weft_registry.kinds import kind_schema
from weft_registry.manifest import Manifest, Metric
from weft_trainer.card import model_card
from weft_trainer.config import TrainConfig
from weft_trainer.data import Dataset
from weft_trainer.methods import METHODS
from weft_trainer.score import Score

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def check_output(directory: Path) -> None:
    """Raises `InvalidInputError` if `directory` is something that an artifact may not replace."""
    if directory.is_dir() and not any(directory.iterdir()):
        return
    if directory.exists() and not (directory / artifact.MANIFEST).is_file():
        raise InvalidInputError(f"output: {directory} exists and is no artifact of ours; choose another")


def export(
    config: TrainConfig,
    stored: StoredBase,
    params: Any,
    tensors: Mapping[str, Tensor],
    datasets: list[Dataset],
    score: Score | None,
    steps: int,
) -> Manifest:
    """Writes the artifact to `config.output`, replacing an earlier one in a single rename, and returns its manifest.

    Raises `PreconditionError` for values that are not finite; then nothing is written.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise PreconditionError(
                f"training diverged: {name} is not finite; lower training.learning_rate", reason="DIVERGED"
            )
    kind = METHODS[config.method].kind
    schema = kind_schema(kind)
    staging = config.output.with_name(f".{config.output.name}.{os.getpid()}")
    staging.mkdir(parents=True)
    try:
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, str(staging / artifact.WEIGHTS), {"format": "pt"})
        peft_config = peft_format.to_peft(kind, params, stored.spec)
        (staging / artifact.CONFIG).write_bytes(peft_format.config_bytes(peft_config))
        parameters = sum(tensor.numel() for tensor in tensors.values())
        (staging / artifact.CARD).write_text(model_card(config, stored.spec, datasets, score, steps, parameters))
        manifest = artifact.describe(
            staging,
            kind=kind,
            adapter_block=schema.block(params),
            base=stored.spec.fingerprint,
            name=config.adapter_name,
            license=config.license,
            tokenizer=_tokenizer(stored),
            provenance=_provenance(config, datasets, steps),
            metrics=_metrics(datasets, score),
        )
        artifact.write_manifest(staging, manifest)
        _swap(staging, config.output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def _swap(staging: Path, output: Path) -> None:
    check_output(output)
    if not output.exists():
        staging.rename(output)
        return
    old = staging.with_name(staging.name + ".old")
    output.rename(old)
    staging.rename(output)
    shutil.rmtree(old)


def _metrics(datasets: list[Dataset], score: Score | None) -> list[Metric]:
    if score is None:
        return []
    held_out = next(dataset.rows for dataset in datasets if dataset.rows.split == "eval")
    values = {"loss": f"{score.loss:.6f}", "exact_match": f"{score.exact_match:.6f}", "examples": str(score.examples)}
    return [Metric(name, value, held_out.sha256, "eval") for name, value in values.items()]


def _provenance(config: TrainConfig, datasets: list[Dataset], steps: int) -> dict[str, Any]:
    return {
        "trainer": "weft_trainer",
        "version": weft.__version__,
        "config_sha256": config.digest(),
        "config": config.as_json(),
        "datasets": [
            {"uri": d.rows.uri, "sha256": d.rows.sha256, "split": d.rows.split, "examples": len(d.examples)}
            for d in datasets
        ],
        "seed": config.training.seed,
        "steps": steps,
        "parent_version": None,
    }


def _tokenizer(stored: StoredBase) -> dict[str, Any]:
    files = {
        name: digests.of_file(stored.tokenizer_dir / name)
        for name in _TOKENIZER_FILES
        if (stored.tokenizer_dir / name).is_file()
    }
    return {"files_sha256": digests.of_bytes(canonical.dumps(files)), "vocab_size": stored.spec.vocab_size}
