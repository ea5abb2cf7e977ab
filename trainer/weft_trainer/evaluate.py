"""Scores an artifact, unmerged or merged, or the base alone, on a JSONL file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from weft_adapters.base.load import StoredBase
from weft_adapters.binding import bind
from weft_adapters.int4 import Int4Weight
from weft_registry import artifact
from weft_registry.base import BaseStore
from weft_registry.errors import InvalidInputError, NotFoundError
from weft_registry.home import Home
from weft_registry.kinds import kind_schema
from weft_trainer.adapted import AdaptedModel, BareModel
from weft_trainer.batches import TokenBatches
from weft_trainer.data import BaseTokenizer, tokenize
from weft_trainer.methods import method_of_kind
from weft_trainer.model import build
from weft_trainer.progress import Reporter
from weft_trainer.rows import choose, read_rows
from weft_trainer.score import Score, score
from weft_trainer.train import open_base


def evaluate(
    directory: Path | None,
    data: Path,
    report: Reporter,
    *,
    base: str | None = None,
    merged: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    max_length: int | None = None,
    rows: int | None = None,
    home: Home | None = None,
) -> Score:
    """The score of the artifact in `directory` (None: of the base alone) on the examples of `data`.

    `base` names the stored base; None takes the one whose weights the manifest names. `merged` scores the overlay that
    a server's merge makes instead of base plus delta. `max_length` None is the base's context length; `rows` limits
    how many examples are scored. Raises what reading, binding and merging raise.
    """
    home = home or Home.from_environment()
    if directory is None:
        if base is None:
            raise InvalidInputError("base: say which base to score: there is no artifact that names one")
        if merged:
            raise InvalidInputError("merged: there is no artifact to merge")
        stored = open_base(base, home)
        model: AdaptedModel = BareModel(build(stored, dtype, device=_device()))
    else:
        stored = _base_of(directory, base, home)
        model = _merged(directory, stored, dtype) if merged else _adapted(directory, stored, dtype)
    tokenizer = BaseTokenizer(stored.tokenizer_dir, stored.config.eos_token_ids)
    chosen = choose(read_rows(data, "eval"), rows, seed=0)
    dataset = tokenize(chosen, tokenizer, max_length or stored.spec.context_length)
    report.message(dataset.describe())
    model.eval()
    return score(model, TokenBatches(dataset.examples, tokenizer.pad), dataset.examples, report)


def _base_of(directory: Path, base: str | None, home: Home) -> StoredBase:
    if base is not None:
        return open_base(base, home)
    wanted = artifact.read(directory).base
    found = BaseStore(home.bases).by_weights(wanted.weights_sha256)
    if found is None:
        raise NotFoundError(
            f"the base {wanted.id} with weights {wanted.weights_sha256} is not here; add it with `weft base add`",
            reason="BASE_NOT_FOUND",
        )
    return open_base(found[0], home)


def _adapted(directory: Path, stored: StoredBase, dtype: torch.dtype) -> AdaptedModel:
    manifest = artifact.read(directory)
    # Binding checks the base and every tensor; float32 because these are the master weights.
    adapter = bind(directory, manifest, stored.spec, dtype=torch.float32)
    params = kind_schema(manifest.kind).parse(manifest.adapter)
    model = method_of_kind(manifest.kind).bare(build(stored, dtype, device=_device()), params)
    model.restore(adapter.tensors)
    return model


def _merged(directory: Path, stored: StoredBase, dtype: torch.dtype) -> AdaptedModel:
    adapter = bind(directory, artifact.read(directory), stored.spec, dtype=torch.float32)
    found = {module: adapter.kind.overlay(module, stored.int4(module), adapter) for module in stored.spec.linears}
    overlays: Mapping[str, Int4Weight | Tensor] = {m: weight for m, weight in found.items() if weight is not None}
    return BareModel(build(stored, dtype, overlays=overlays, device=_device()))


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
