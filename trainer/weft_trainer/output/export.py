"""A trained adapter as an artifact directory: PEFT's two files, a model card with the loss curve, and the manifest; all
of it or nothing.

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
from weft_adapters.saving import tokenizer_block
from weft_registry import artifact, canonical, peft_format
from weft_registry import digest as digests
from weft_registry.errors import InvalidInputError, PreconditionError
from weft_registry.kinds import kind_schema
from weft_registry.manifest import Manifest, Metric
from weft_trainer.config.run import TrainConfig
from weft_trainer.data.dataset import Dataset
from weft_trainer.methods import METHODS
from weft_trainer.methods.parts import stacked_on
from weft_trainer.objectives.score import Score
from weft_trainer.output.card import model_card
from weft_trainer.output.curve import loss_curve
from weft_trainer.training.loop import Fitted

CURVE = "loss.png"


def check_output(directory: Path) -> None:
    """Raises `InvalidInputError` if `directory` is something that an artifact may not replace, or cannot be written."""
    full = directory.is_dir() and any(directory.iterdir())
    if (full or directory.is_file()) and not (directory / artifact.MANIFEST).is_file():
        raise InvalidInputError(f"output: {directory} exists and is no artifact of ours; choose another")
    parent = directory.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"output: {parent} cannot be made: {error.strerror}; choose another") from error
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InvalidInputError(f"output: {parent} cannot be written to; choose another")


def export(
    config: TrainConfig,
    stored: StoredBase,
    params: Any,
    tensors: Mapping[str, Tensor],
    datasets: list[Dataset],
    fitted: Fitted,
    extra: Mapping[str, Any] | None = None,
) -> Manifest:
    """Writes the artifact to `config.output`, replacing an earlier one in a single rename, and returns its manifest.

    `extra` joins the manifest's provenance.

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
        if artifact.has_config(kind):
            peft_config = peft_format.to_peft(kind, params, stored.spec)
            (staging / artifact.CONFIG).write_bytes(peft_format.config_bytes(peft_config))
        parameters = sum(tensor.numel() for tensor in tensors.values())
        picture = loss_curve(fitted.history)
        if picture is not None:
            (staging / CURVE).write_bytes(picture)
        provenance = {**_provenance(config, datasets, fitted), **(extra or {})}
        below, curve = stacked_on(kind, provenance), CURVE if picture is not None else None
        card = model_card(config, stored.spec, datasets, fitted, parameters, curve, below)
        (staging / artifact.CARD).write_text(card)
        manifest = artifact.describe(
            staging,
            kind=kind,
            adapter_block=schema.block(params),
            base=stored.spec.fingerprint,
            name=config.adapter_name,
            license=config.license,
            tokenizer=tokenizer_block(stored),
            provenance=provenance,
            metrics=_metrics(datasets, fitted),
        )
        artifact.write_manifest(staging, manifest)
        # safetensors writes for its owner alone; who may read the rest of the artifact may read the weights.
        shutil.copymode(staging / artifact.MANIFEST, staging / artifact.WEIGHTS)
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


def _metrics(datasets: list[Dataset], fitted: Fitted) -> list[Metric]:
    score = fitted.score
    if score is None:
        return []
    held_out = {dataset.rows.title: dataset.rows.sha256 for dataset in datasets if dataset.rows.split == "eval"}
    files = sorted(set(held_out.values()))
    sha256 = files[0] if len(files) == 1 else digests.of_bytes(canonical.dumps(files))
    found = _figures(score, "", sha256)
    if fitted.trained is not None:
        found += _figures(fitted.trained, "_before_extraction", sha256)
    for part in score.parts:
        found += _figures(part.score, f"[{part.name}]", held_out[part.name])
    return found


def _figures(score: Score, suffix: str, sha256: str) -> list[Metric]:
    values = {name: f"{value:.6f}" for name, value in score.figures().items()} | {"examples": str(score.examples)}
    return [Metric(f"{name}{suffix}", value, sha256, "eval") for name, value in values.items()]


def _provenance(config: TrainConfig, datasets: list[Dataset], fitted: Fitted) -> dict[str, Any]:
    return {
        "trainer": "weft_trainer",
        "version": weft.__version__,
        "config_sha256": config.digest(),
        "config": config.as_json(),
        "datasets": [dataset.provenance() for dataset in datasets],
        "seed": config.training.seed,
        "steps": fitted.steps,
        "trained_parameters": fitted.parameters,
        "parent_version": None,
    }
