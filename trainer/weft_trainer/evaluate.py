"""Scores an artifact, unmerged or merged, or the base alone, on a JSONL file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weft_adapters.base.load import StoredBase
from weft_adapters.binding import bind
from weft_adapters.int4 import Int4Weight
from weft_adapters.kinds.kind import Adapter
from weft_registry import artifact
from weft_registry.base import BaseStore
from weft_registry.errors import InvalidInputError, NotFoundError
from weft_registry.home import Home
from weft_registry.parts import parts_of
from weft_trainer.adapted import AdaptedModel, BareModel
from weft_trainer.batches import TokenBatches
from weft_trainer.data import BaseTokenizer, tokenize
from weft_trainer.methods import method_of_kind, over
from weft_trainer.model import build
from weft_trainer.parts import Part, find_parts
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
        wear = _merged if merged else _adapted
        model = wear(directory, stored, dtype, home)
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


def _adapted(directory: Path, stored: StoredBase, dtype: torch.dtype, home: Home) -> AdaptedModel:
    adapter, parts = _bound(directory, stored, home)
    method = over(method_of_kind(adapter.kind.name), parts)
    model = method.bare(build(stored, dtype, device=_device()), adapter.params)
    model.restore(adapter.tensors)
    return model


def _bound(directory: Path, stored: StoredBase, home: Home) -> tuple[Adapter[Any], Sequence[Part]]:
    """The adapter and what it is made over. Binding checks the base and every tensor; float32 because these are the
    master weights."""
    manifest = artifact.read(directory)
    names = [str(part) for part in parts_of(manifest)]
    parts = find_parts(names, stored.spec, home) if names else []
    bound = [part.adapter for part in parts]
    return bind(directory, manifest, stored.spec, dtype=torch.float32, parts=bound), parts


def _merged(directory: Path, stored: StoredBase, dtype: torch.dtype, home: Home) -> AdaptedModel:
    adapter, _ = _bound(directory, stored, home)
    found = {module: adapter.kind.overlay(module, stored.int4(module), adapter) for module in stored.spec.linears}
    overlays: Mapping[str, Int4Weight | Tensor] = {m: weight for m, weight in found.items() if weight is not None}
    stored_biases = {module: bias for module in overlays if (bias := stored.bias(module)) is not None}
    biases = {module: adapter.kind.overlay_bias(module, bias, adapter) for module, bias in stored_biases.items()}
    return BareModel(build(stored, dtype, overlays=overlays, biases=biases, device=_device()))


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
